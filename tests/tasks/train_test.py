import csv
import os
import shlex
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tests.tasks import small_runs
from tff_debias import runtime

_FLAGS = [
  '--personalization=proto',
  '--num_clients=8',
  '--clients_per_round=3',
  '--local_steps=3',
  '--rounds_per_checkpoint=3',
  '--rounds_per_evaluation=2',
]
_KEY = 'evaluation/by_client/accuracy/mean'


def train(folder, *flags):
  flags = [*_FLAGS, '--nobaseline', *flags]
  small_runs.prepare('train', f'--output_dir={folder}', *flags)()


def rows(folder):
  """The metrics but for the times."""
  with open(folder / 'metrics.csv', newline='') as file:
    return [
      {k: v for k, v in row.items() if 'time' not in k}
      for row in csv.DictReader(file)
    ]


def wait_for_round(folder, round_num, process):
  while True:
    assert process.poll() is None, process.communicate()
    if os.path.exists(folder / 'metrics.csv'):
      if rows(folder) and int(rows(folder)[-1]['round']) >= round_num:
        return
    time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_never_stopped(tmp_path, capfd):
  whole, pieces = tmp_path / 'whole', tmp_path / 'pieces'
  flags = ['--rounds=14', '--method=pfl_scaf']
  train(whole, *flags)
  out, err = capfd.readouterr()
  assert 'personalized accuracy' in out
  assert 'accuracy' in err and '14/14' in err

  command = [sys.executable, '-m', 'tasks.train', f'--output_dir={pieces}']
  killed = subprocess.Popen(
    [*command, *_FLAGS, '--nobaseline', *flags], stderr=subprocess.PIPE
  )
  wait_for_round(pieces, 4, killed)
  killed.kill()
  killed.communicate(timeout=60)
  assert int(rows(pieces)[-1]['round']) < 14
  # The folder knows its settings.
  more = [f'--run={pieces}', '--rounds=14', '--nobaseline']
  small_runs.prepare('train', *more)()
  assert rows(pieces) == rows(whole)
  models = [
    tf.keras.models.load_model(f / 'meta_model.keras', compile=False)
    for f in (whole, pieces)
  ]
  for a, b in zip(*(model.get_weights() for model in models), strict=True):
    np.testing.assert_array_equal(a, b)

  # Other settings are refused.
  with pytest.raises(errors.UserError, match='--seed=0 there, 5 here'):
    train(whole, *flags, '--seed=5')
  with pytest.raises(errors.UserError, match='alpha=2.0 is not the setting'):
    small_runs.prepare('train', f'--run={whole}', *flags, '--alpha=2')
  with pytest.raises(errors.UserError, match='batch_size=3 is not the setting'):
    small_runs.prepare('train', f'--run={whole}', '--batch_size=3')
  with Image.open(whole / 'convergence.png') as image:
    assert image.size[0] > 1000
    assert np.asarray(image.convert('L')).std() > 10
  # TensorBoard calls the run by its method, and shows the accuracy first.
  (event_file, *_) = (whole / 'tensorboard' / 'pfl_scaf_proto').iterdir()
  tags = {
    value.tag
    for event in tf.compat.v1.train.summary_iterator(str(event_file))
    for value in event.summary.value
  }
  assert min(tags).startswith('1 main/accuracy')


@pytest.mark.slow
def test_a_correction_of_ones_own_against_none_and_training_alone(
  tmp_path, monkeypatch, capsys
):
  module = small_runs.own_module(tmp_path, monkeypatch)

  def train_own(name, gamma, *flags):
    train(
      tmp_path / name,
      '--rounds=2',
      f'--personalization={module}:FewSteps(num_steps=1)',
      f'--correction={module}:{gamma}',
      *flags,
    )

  train_own('9', 'Pull(gamma = 9)', '--baseline')
  title = 'Pull(gamma=9), FewSteps(num_steps=1) on digits'
  out = capsys.readouterr().out
  assert title in out
  pulled, baseline = rows(tmp_path / '9'), rows(tmp_path / '9' / 'baseline')
  assert baseline[2][_KEY] != pulled[2][_KEY]
  # The same command goes on, another argument does not.
  with pytest.raises(errors.UserError, match='settings: --correction=own_'):
    train_own('9', 'Pull(gamma=9.)')
  with pytest.raises(errors.UserError, match='Did you mean Pull'):
    train_own('x', 'Pall(gamma=1)')
  assert not (tmp_path / 'x').exists()

  *_, first, second, third, _ = out.strip().split('\n')
  assert (
    f'Pull(gamma=9) {float(pulled[2][_KEY]):.3f}, Per-FedAvg'
    f' {float(baseline[2][_KEY]):.3f}'
  ) in first
  # Alone, a device trains by gradient descent from the initial model.
  settings = folder_lib.RunFolder(str(tmp_path / '9')).read()
  expected = settings.uncorrected()
  assert (
    folder_lib.RunFolder(str(tmp_path / '9' / 'baseline')).read() == expected
  )
  alone = _trained_alone(small_runs.experiment_lib.Experiment(settings))
  assert f'alone {alone:.3f}.' in first
  flags = shlex.split(second.partition('python -m tasks.compare ')[2])
  assert '--num_clients=8' in flags and '--seeds=0,1,2,3,4' in flags
  assert small_runs.prepare('compare', *flags)
  assert f'tasks.evaluate --run={tmp_path / "9"}' in third


def _trained_alone(experiment):
  accuracies = []
  for client in experiment.evaluation_data:
    network = experiment.build_keras_model()
    train_batch, test_batch = (
      data.get_single_element() for data in client.values()
    )
    for _ in range(100):
      small_runs.descend(
        network,
        *train_batch.values(),
        experiment.settings.learning_rate,
      )
    accuracies.append(
      small_runs.accuracy(network, test_batch['x'], test_batch['y'].numpy())
    )
  return np.mean(accuracies)


@pytest.mark.slow
def test_files_of_devices_and_a_network_of_ones_own(tmp_path, monkeypatch):
  module = small_runs.own_module(tmp_path, monkeypatch)
  data = tmp_path / 'data'
  data.mkdir()
  rng = np.random.default_rng(0)
  for i, size in enumerate((10, 20, 15)):
    y = np.arange(size) % 3
    x = rng.normal(size=(size, 2, 3)) + y[:, None, None]
    test = {'x_test': x[:2], 'y_test': y[:2]} if i == 0 else {}
    np.savez(data / f'phone_{i}.npz', x=x, y=y, **test)
  flags = ['--task=npz', f'--data_dir={data}', '--rounds=2']
  flags += [f'--network={module}:network(width=5)', '--method=fed_avg']
  folder = tmp_path / 'run'
  small_runs.prepare('train', f'--output_dir={folder}', *flags)()
  # Two test examples are given, and a fifth of the others is held out.
  assert rows(folder)[-1]['evaluation/num_examples'] == str(2 + 4 + 3)
  model = tf.keras.models.load_model(folder / 'meta_model.keras')
  assert [w.shape for w in model.get_weights()] == [(6, 5), (5,), (5, 3), (3,)]


def test_a_run_that_diverges_ends_with_its_round_and_learning_rate(tmp_path):
  message = 'Round 1: no client has a finite update .* rate 1e.38'
  with pytest.raises(runtime.ComputationError, match=message):
    flags = ['--personalization=none', '--method=fed_avg', '--rounds=3']
    train(tmp_path / 'run', *flags, '--learning_rate=1e38')
