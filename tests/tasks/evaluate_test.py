import csv
import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tasks.reports import client_report
from tasks.reports import per_client
from tasks.runs import checkpoint
from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as run_folder_lib
from tasks.runs import settings as settings_lib
from tasks.runs import training
from tests import small_models
import tff_debias

_ROUNDS = 4


def experiment(**options):
  options = {
    'num_clients': 12,
    'clients_per_round': 2,
    'held_out_share': 0.25,
    'local_steps': 2,
    'rounds_per_evaluation': 2,
    **options,
  }
  return experiment_lib.Experiment(settings_lib.Settings(**options))


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A finished run of each personalization, with all of its checkpoints."""
  folders = {}
  for name in ('proto', 'maml'):
    path = str(tmp_path_factory.mktemp('runs') / name)
    folders[name] = run_folder_lib.RunFolder(path)
    with folders[name].lock():
      steps = {'maml_learning_rate': 0.1} if name == 'maml' else {}
      trained = experiment(personalization=name, **steps)
      training.run(trained, folders[name], _ROUNDS, 2)
  return folders


@pytest.fixture(scope='module')
def evaluated(runs, runtime):
  """The folders that `tasks.evaluate` writes."""
  written = {}
  for name, folder in runs.items():
    settings, _ = folder.read()
    evaluated_experiment = experiment_lib.Experiment(settings)
    result = per_client.evaluate(
      evaluated_experiment,
      *checkpoint.load(evaluated_experiment, folder),
      few_shot=[3, 40],
    )
    client_report.save(result, folder.evaluation)
    written[name] = os.path.join(folder.evaluation, f'round_{_ROUNDS:06d}')
  return written


def copy(folder, tmp_path):
  path = str(tmp_path / 'copy')
  shutil.copytree(folder.path, path)
  return run_folder_lib.RunFolder(path)


def test_held_out_clients_never_train():
  some = experiment(held_out_share=0.3)
  held_out = set(some.held_out_clients)
  assert len(held_out) == 4
  trained = {
    client['client_id']
    for r in range(1, 60)
    for client in some.training_data(r)
  }
  assert trained == set(some.train_data.client_ids) - held_out
  assert len(some.evaluation_data) == 8
  assert set(experiment(held_out_share=0.3).held_out_clients) == held_out
  assert (
    set(experiment(held_out_share=0.3, seed=1).held_out_clients) != held_out
  )


def test_with_none_held_out_the_participants_are_as_ever():
  everyone = experiment(held_out_share=0.0)
  ids = [f'client_{i:04d}' for i in range(12)]
  assert everyone.training_clients == ids
  sample = tff.simulation.build_uniform_sampling_fn(ids, random_seed=0)
  for r in (1, 7):
    participants = [d['client_id'] for d in everyone.training_data(r)]
    assert participants == sample(r, 2)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'clients_per_round': 10},
      'clients_per_round=10 must be .* less the 3 of --held',
    ),
    ({'held_out_share': 1.0}, 'held_out_share=1.0 must be below 1'),
    ({'held_out_share': -0.1}, 'held_out_share=-0.1 must be at least 0'),
  ],
)
def test_wrong_shares_say_what_would_be_right(options, message):
  with pytest.raises(settings_lib.SettingsError, match=message):
    experiment(**options)


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


@pytest.mark.parametrize('name', ['proto', 'maml'])
def test_groups_are_those_of_the_devices_own_storage(runs, evaluated, name):
  took_part = set()
  for root, _, files in os.walk(runs[name].storage):
    if 'client_id' in files:
      with open(os.path.join(root, 'client_id')) as file:
        took_part.add(file.read())
  settings, _ = runs[name].read()
  assert len(experiment_lib.Experiment(settings).training_clients) == 9
  rows = read(os.path.join(evaluated[name], 'clients.csv'))
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
  some = experiment()
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
  some = experiment()
  network = tf.keras.models.load_model(runs['maml'].meta_model, compile=False)
  start = network.get_weights()
  loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  by_step = []
  for client_id in some.held_out_clients:
    network.set_weights(start)
    x, y = arrays(some.train_data, client_id)
    test_x, test_y = arrays(some.test_data, client_id)
    by_step.append([])
    for _ in range(11):
      by_step[-1].append((network(test_x).numpy().argmax(1) == test_y).mean())
      with tf.GradientTape() as tape:
        value = loss(y, network(x))
      gradients = tape.gradient(value, network.trainable_variables)
      gradients, _ = tf.clip_by_global_norm(gradients, 10.0)
      for variable, g in zip(
        network.trainable_variables, gradients, strict=True
      ):
        variable.assign_sub(0.1 * g)
  rows = [
    row
    for row in read(os.path.join(evaluated['maml'], 'steps.csv'))
    if row['group'] == 'held out'
  ]
  assert [int(row['steps']) for row in rows] == list(range(11))
  means = [float(row['mean']) for row in rows]
  np.testing.assert_allclose(means, np.mean(by_step, axis=0), atol=1e-6)
  devices = read(os.path.join(evaluated['maml'], 'clients.csv'))
  gains = [float(d['gain']) for d in devices if d['group'] == 'held out']
  assert np.mean(gains) == pytest.approx(means[5] - means[0], abs=1e-6)
  few_shot = read(os.path.join(evaluated['maml'], 'few_shot.csv'))
  ends = [
    float(row['mean'])
    for row in few_shot
    if row['group'] == 'held out' and row['examples'] in ('0', 'all')
  ]
  np.testing.assert_allclose(ends, [means[0], means[5]], atol=1e-6)


def test_prototypes_have_no_gain_and_that_is_said(evaluated):
  rows = read(os.path.join(evaluated['proto'], 'clients.csv'))
  assert {row['meta_accuracy'] + row['gain'] for row in rows} == {''}
  with open(os.path.join(evaluated['proto'], 'summary.md')) as file:
    summary = file.read()
  assert 'n/a' in summary and 'Prototypes replace the last layer' in summary


def test_a_personalization_of_ones_own_has_figures_of_the_meta_model(
  runs, evaluated, runtime
):
  class OwnMaml(tff_debias.Maml):
    """The same in a class that the program does not know."""

  settings, _ = runs['maml'].read()
  some = experiment_lib.Experiment(settings)
  given = dataclasses.asdict(some.personalization)
  some.personalization = OwnMaml(**given)
  result = per_client.evaluate(
    some, *checkpoint.load(some, runs['maml']), few_shot=[]
  )
  assert not result.steps
  expected = read(os.path.join(evaluated['maml'], 'clients.csv'))
  for row, own in zip(expected, result.clients, strict=True):
    for name in ('meta_accuracy', 'meta_loss', 'accuracy', 'loss', 'gain'):
      assert own[name] == pytest.approx(float(row[name]), abs=1e-5)
  assert any(own['gain'] > 0.1 for own in result.clients)


def test_the_pictures_show_something(evaluated):
  for folder, names in (
    (evaluated['proto'], ('histogram', 'few_shot')),
    (evaluated['maml'], ('histogram', 'few_shot', 'steps')),
  ):
    for name in names:
      with Image.open(os.path.join(folder, f'{name}.png')) as image:
        assert np.asarray(image.convert('L')).std() > 10


@pytest.mark.slow
def test_a_running_folder_is_only_read(runs, tmp_path):
  folder = copy(runs['proto'], tmp_path)
  shutil.rmtree(folder.evaluation, ignore_errors=True)
  with folder.lock():
    before = small_models.snapshot(folder.path)
    result = subprocess.run(
      [
        *(sys.executable, '-m', 'tasks.evaluate', f'--run={folder.path}'),
        *('--round=2', '--max_clients=5', '--few_shot='),
      ],
      capture_output=True,
      text=True,
    )
  assert result.returncode == 0, result.stderr
  assert 'after round 2' in result.stdout
  assert '5 of 12 devices' in result.stdout
  after = small_models.snapshot(folder.path)
  new = {path for path in after if path.startswith('evaluation')}
  assert {path: after[path] for path in after.keys() - new} == before
  files = {os.path.basename(path) for path in new if after[path] is not None}
  assert files == {
    *('clients.csv', 'histogram.pdf', 'histogram.png', 'summary.md')
  }


def test_a_checkpoint_that_is_removed_meanwhile_gives_way_to_the_next(
  runs, runtime, tmp_path, monkeypatch
):
  folder = copy(runs['proto'], tmp_path)
  old, new = (
    os.path.join(folder.checkpoints, f'program_state_{r}') for r in (2, 4)
  )
  os.rename(new, str(tmp_path / 'new'))
  load = tff.program.FileProgramStateManager.load

  async def train_on_and_load(self, version, structure):
    if os.path.exists(old):
      shutil.rmtree(old)
      os.rename(str(tmp_path / 'new'), new)
    return await load(self, version, structure)

  monkeypatch.setattr(
    tff.program.FileProgramStateManager, 'load', train_on_and_load
  )
  assert checkpoint.load(experiment(), folder)[1] == 4


def test_the_final_model_alone_is_enough(runs, runtime, tmp_path):
  folder = copy(runs['maml'], tmp_path)
  some = experiment(personalization='maml')
  expected, _ = checkpoint.load(some, folder)
  shutil.rmtree(folder.checkpoints)
  weights, round_num = checkpoint.load(some, folder)
  assert round_num == _ROUNDS
  assert not os.path.exists(folder.checkpoints)
  tf.nest.map_structure(np.testing.assert_array_equal, weights, expected)


def cut(path):
  os.truncate(path, os.path.getsize(path) // 2)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (
      lambda f: cut(f.checkpoints + '/program_state_4/saved_model.pb'),
      'checkpoint of round 4 is damaged: .* Another one is --round=2',
    ),
    (
      lambda f: cut(
        f.checkpoints
        + '/program_state_4/variables/variables.data-00000-of-00001'
      ),
      'checkpoint of round 4 is damaged',
    ),
    (
      lambda f: shutil.rmtree(f.checkpoints + '/program_state_4/variables'),
      'checkpoint of round 4 is damaged',
    ),
    (
      lambda f: (shutil.rmtree(f.checkpoints), cut(f.meta_model)),
      'meta_model.keras is damaged',
    ),
    (
      lambda f: (shutil.rmtree(f.checkpoints), os.remove(f.meta_model)),
      'There is no checkpoint in .* yet',
    ),
    (
      lambda f: (shutil.rmtree(f.checkpoints), os.remove(f.metrics)),
      'The round of .*meta_model.keras is not known',
    ),
  ],
)
def test_says_what_is_damaged(runs, runtime, tmp_path, damage, message):
  folder = copy(runs['proto'], tmp_path)
  damage(folder)
  with pytest.raises(checkpoint.MetaModelError, match=message):
    checkpoint.load(experiment(), folder)


def test_a_final_model_that_is_a_program_is_not_run(runs, runtime, tmp_path):
  folder = copy(runs['proto'], tmp_path)
  shutil.rmtree(folder.checkpoints)
  written = str(tmp_path / 'written')

  def attack(x):
    import pathlib

    pathlib.Path(written).touch()
    return x

  program = tf.keras.Sequential(
    [tf.keras.layers.Input((8, 8)), tf.keras.layers.Lambda(attack)]
  )
  for file in (folder.meta_model, str(tmp_path / 'hdf5.h5')):
    program.save(file)
    os.path.exists(written) and os.remove(written)
    shutil.copy(file, tmp_path / 'saved')
    os.replace(tmp_path / 'saved', folder.meta_model)
    with pytest.raises(checkpoint.MetaModelError, match='meta_model.keras is'):
      checkpoint.load(experiment(), folder)
    assert not os.path.exists(written)


def test_refuses_a_round_or_a_network_of_others(runs, runtime, tmp_path):
  folder = copy(runs['proto'], tmp_path)
  with pytest.raises(checkpoint.MetaModelError, match='=3 is not .*: 2, 4'):
    checkpoint.load(experiment(), folder, 3)
  other = experiment(partition='alid')
  with pytest.raises(checkpoint.MetaModelError, match='of another network'):
    checkpoint.load(other, folder)
  shutil.rmtree(folder.checkpoints)
  with pytest.raises(checkpoint.MetaModelError, match='of another network'):
    checkpoint.load(other, folder)
  with pytest.raises(checkpoint.MetaModelError, match='--round=3 must be 4'):
    checkpoint.load(experiment(), folder, 3)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_steps': 3}, '--steps=3 is for MAML, .*--personalization=proto'),
    ({'few_shot': [5, 5000]}, 'has 5000, but no device has more than 100'),
  ],
)
def test_refuses_what_does_not_suit_the_run(options, message):
  with pytest.raises(per_client.EvaluationError, match=message):
    per_client.evaluate(experiment(), None, 1, **options)


def test_names_the_run_that_may_be_meant(tmp_path):
  for name in ('digits_maml', 'digits_proto'):
    os.mkdir(tmp_path / name)
    run_folder_lib.RunFolder(str(tmp_path / name)).claim(
      settings_lib.Settings()
    )
  os.mkdir(tmp_path / 'empty')
  os.mkdir(tmp_path / 'cut')
  (tmp_path / 'cut' / 'settings.json').write_text('{"run": "a", "sett')
  assert run_folder_lib.find(f'{tmp_path}/digits_maml/').path.endswith('maml')
  for name, message in (
    ('digits_mamml', 'no such folder. Did you mean .*/digits_maml'),
    ('', 'no settings.json in it. Did you mean .*/digits_maml'),
    ('empty', 'it is empty.$'),
    ('cut', 'settings.json is damaged'),
  ):
    with pytest.raises(run_folder_lib.RunFolderError, match=message):
      run_folder_lib.find(str(tmp_path / name))


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ([], 'Error: Name the folder of the run: --run=runs/NAME'),
    (['--run=/nowhere'], 'Error: /nowhere holds no run'),
    (['--rum=x'], "Unknown command line flag 'rum'. Did you mean: run"),
  ],
)
def test_wrong_flags_do_not_wait_for_tensorflow(flags, said):
  result = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'tasks.evaluate', *flags],
    capture_output=True,
    text=True,
  )
  assert result.returncode != 0
  assert said in result.stderr
  assert 'Traceback' not in result.stderr
  assert 'tensorflow' not in result.stderr
