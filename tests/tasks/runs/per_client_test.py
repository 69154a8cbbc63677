import csv
import dataclasses
import os

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import per_client
from tasks.runs import training
from tests import small_models
from tests.tasks import small_runs
import tff_debias

pytestmark = pytest.mark.slow


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def evaluated(runs, runtime):
  """The folders that `tasks.evaluate` writes; it only reads the others."""
  written = {}
  for name, local_steps in (('proto', 0), ('maml', 2)):
    flags = ['--few_shot=3,40', f'--local_training={local_steps}']
    folder = runs[name]
    with folder.lock():  # As while it trains.
      before = small_models.snapshot(folder.path)
      small_runs.prepare('evaluate', f'--run={folder.path}', *flags)()
      after = small_models.snapshot(folder.path)
    new = {path for path in after if path.startswith('evaluation')}
    assert {path: after[path] for path in after.keys() - new} == before
    written[name] = os.path.join(
      folder.evaluation, f'round_{small_runs.ROUNDS:06d}'
    )
  return written


@pytest.mark.parametrize('name', ['proto', 'maml'])
def test_agrees_with_the_metrics_of_the_run(runs, evaluated, name):
  rows = read(os.path.join(evaluated[name], 'clients.csv'))
  assert len(rows) == 12
  trainable = [row for row in rows if row['group'] != 'held out']
  metrics = runs[name].read_metrics()[-1]
  for value in ('accuracy', 'loss'):
    values = [float(row[value]) for row in trainable]
    found = {
      'mean': np.mean(values),
      'q10': sorted(values)[0],
      'max': max(values),
    }
    for statistic, expected in found.items():
      metric = metrics[f'evaluation/by_client/{value}/{statistic}']
      assert metric == pytest.approx(expected, rel=1e-5)


def test_groups_are_those_of_the_participants(runs, evaluated):
  some = experiment_lib.Experiment(runs['proto'].read())
  took_part = {
    client['client_id']
    for round_num in range(1, small_runs.ROUNDS + 1)
    for client in some.training_data(round_num)
  }
  rows = read(os.path.join(evaluated['proto'], 'clients.csv'))
  groups = {
    group: {row['client'] for row in rows if row['group'] == group}
    for group in per_client.GROUPS
  }
  assert groups['took part'] == took_part
  assert len(groups['held out']) == 3
  assert len(groups['not yet']) == 9 - len(took_part) > 0


def arrays(data, client_id):
  batch = data.create_tf_dataset_for_client(client_id).batch(1000)
  examples = batch.get_single_element()
  return examples['x'].numpy(), examples['y'].numpy()


def test_few_shot_is_the_nearest_mean_of_so_many_features(runs, evaluated):
  some = small_runs.experiment()
  network = tf.keras.models.load_model(runs['proto'].meta_model, compile=False)
  features = tf.keras.Model(network.input, network.layers[-2].output)
  groups = {
    row['client']: row['group']
    for row in read(os.path.join(evaluated['proto'], 'clients.csv'))
  }
  accuracies = {}
  for place, client_id in enumerate(some.train_data.client_ids):
    x, y = arrays(some.train_data, client_id)
    order = np.random.default_rng([0, 5, place]).permutation(len(y))
    test_x, test_y = arrays(some.test_data, client_id)
    tested = features(test_x).numpy()
    for size in (3, 40, len(y)):
      chosen = order[:size]
      known = np.unique(y[chosen])
      trained = features(x[chosen]).numpy()
      centers = np.array([trained[y[chosen] == c].mean(0) for c in known])
      distances = ((tested[:, None] - centers) ** 2).sum(-1)
      accuracy = (known[distances.argmin(1)] == test_y).mean()
      name = 'all' if size == len(y) else str(size)
      accuracies.setdefault((groups[client_id], name), []).append(accuracy)
  rows = read(os.path.join(evaluated['proto'], 'few_shot.csv'))
  assert len(rows) == len(accuracies) == 9
  for row in rows:
    expected = accuracies[row['group'], row['examples']]
    assert int(row['clients']) == len(expected)
    assert float(row['mean']) == pytest.approx(np.mean(expected), abs=1e-6)


def test_steps_are_steps_of_gradient_descent(runs, evaluated):
  some = experiment_lib.Experiment(runs['maml'].read())
  network = tf.keras.models.load_model(runs['maml'].meta_model, compile=False)
  start = network.get_weights()
  by_step = []
  for client_id in some.held_out_clients:
    network.set_weights(start)
    x, y = arrays(some.train_data, client_id)
    test_x, test_y = arrays(some.test_data, client_id)
    by_step.append([])
    for _ in range(5):
      by_step[-1].append(small_runs.accuracy(network, test_x, test_y))
      small_runs.descend(network, x, y, 0.1)
  rows = [
    row
    for row in read(os.path.join(evaluated['maml'], 'steps.csv'))
    if row['group'] == 'held out'
  ]
  assert [int(row['steps']) for row in rows] == list(range(5))
  means = [float(row['mean']) for row in rows]
  np.testing.assert_allclose(means, np.mean(by_step, axis=0), atol=1e-6)
  devices = read(os.path.join(evaluated['maml'], 'clients.csv'))
  gains = [float(d['gain']) for d in devices if d['group'] == 'held out']
  assert np.mean(gains) == pytest.approx(means[2] - means[0], abs=1e-6)
  few_shot = read(os.path.join(evaluated['maml'], 'few_shot.csv'))
  ends = [
    float(row['mean'])
    for row in few_shot
    if row['group'] == 'held out' and row['examples'] in ('0', 'all')
  ]
  np.testing.assert_allclose(ends, [means[0], means[2]], atol=1e-6)


def test_alone_is_gradient_descent_from_the_initial_model(runs, evaluated):
  some = experiment_lib.Experiment(runs['maml'].read())
  devices = read(os.path.join(evaluated['maml'], 'clients.csv'))
  three_examples = []
  for place, device in enumerate(devices):
    if device['group'] != 'held out' and place > 1:
      continue  # Two of the others are enough.
    x, y = arrays(some.train_data, device['client'])
    test_x, test_y = arrays(some.test_data, device['client'])
    order = np.random.default_rng([0, 5, place]).permutation(len(y))
    for chosen in order, order[:3]:
      network = some.build_keras_model()
      for _ in range(2):
        small_runs.descend(network, x[chosen], y[chosen], 0.2)
      accuracy = small_runs.accuracy(network, test_x, test_y)
      if len(chosen) > 3:
        assert float(device['alone']) == pytest.approx(accuracy, abs=1e-6)
      elif device['group'] == 'held out':
        three_examples.append(accuracy)
  (row,) = [
    row
    for row in read(os.path.join(evaluated['maml'], 'few_shot.csv'))
    if (row['group'], row['examples']) == ('held out', '3')
  ]
  expected = np.mean(three_examples)
  assert float(row['alone']) == pytest.approx(expected, abs=1e-6)
  held_out = [d for d in devices if d['group'] == 'held out']
  counts = [
    sum(float(d['accuracy']) < float(d[other]) for d in held_out)
    for other in ('alone', 'meta_accuracy')
  ]
  with open(os.path.join(evaluated['maml'], 'summary.md')) as file:
    (line,) = [ln for ln in file if ln.startswith('held out: ')]
  assert f'{counts[0]} of 3 devices are worse than alone (' in line
  assert f'{counts[1]} of 3 devices are worse than the meta-model (' in line
  worst = min(float(d['accuracy']) for d in held_out)
  assert f'the worst tenth has {worst:.4f} on average' in line


def test_prototypes_have_no_gain_and_that_is_said(evaluated):
  rows = read(os.path.join(evaluated['proto'], 'clients.csv'))
  assert {row['meta_accuracy'] + row['gain'] for row in rows} == {''}
  with open(os.path.join(evaluated['proto'], 'summary.md')) as file:
    summary = file.read()
  assert 'n/a' in summary and 'replace the last layer' in summary


def test_a_personalization_of_ones_own_has_figures_of_the_meta_model(
  runs, evaluated, runtime
):
  class OwnMaml(tff_debias.Maml):
    """The same in a class that the program does not know."""

  settings = runs['maml'].read()
  some = experiment_lib.Experiment(settings)
  given = dataclasses.asdict(some.personalization)
  some.personalization_in_tests = OwnMaml(**given)
  result = per_client.evaluate(
    some, *training.load(some, runs['maml']), few_shot=[], max_clients=5
  )
  assert not result.steps and len(result.clients) == 5
  rows = {
    row['client']: row
    for row in read(os.path.join(evaluated['maml'], 'clients.csv'))
  }
  for found in result.clients:
    row = rows[found['client']]
    for name in ('meta_accuracy', 'meta_loss', 'accuracy', 'loss', 'gain'):
      assert found[name] == pytest.approx(float(row[name]), abs=1e-5)
  assert max(found['gain'] for found in result.clients) > 0.1


def test_the_pictures_show_something(evaluated):
  for folder, names in (
    (evaluated['proto'], ('histogram', 'few_shot')),
    (evaluated['maml'], ('histogram', 'few_shot', 'steps')),
  ):
    for name in names:
      with Image.open(os.path.join(folder, f'{name}.png')) as image:
        assert np.asarray(image.convert('L')).std() > 10


def test_refuses_steps_without_maml():
  with pytest.raises(errors.UserError, match='--steps=3 is for MAML, .*proto'):
    per_client.evaluate(small_runs.experiment(), None, 1, num_steps=3)
