import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib
from tests.tasks import small_runs

_FLAGS = [
  '--num_clients=8',
  '--clients_per_round=3',
  '--local_steps=3',
  '--rounds_per_checkpoint=3',
  '--rounds_per_evaluation=2',
  '--nobaseline',
]


def command(folder, *flags):
  return [
    *(sys.executable, '-m', 'tasks.train', f'--output_dir={folder}'),
    *_FLAGS,
    *flags,
  ]


def train(folder, *flags, env=None):
  return small_runs.run_program(
    'train', f'--output_dir={folder}', *_FLAGS, *flags, env=env
  )


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
def test_a_run_that_is_killed_and_interrupted_ends_as_one_never_stopped(
  tmp_path,
):
  whole, pieces = tmp_path / 'whole', tmp_path / 'pieces'
  result = train(whole, '--rounds=24', '--method=pfl_scaf')
  assert result.returncode == 0, result.stderr
  assert 'personalized accuracy' in result.stdout
  assert 'accuracy' in result.stderr and '24/24' in result.stderr

  for stop, at in ((signal.SIGKILL, 4), (signal.SIGINT, 8)):
    process = subprocess.Popen(
      command(pieces, '--rounds=24', '--method=pfl_scaf'),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    wait_for_round(pieces, at, process)
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    assert int(rows(pieces)[-1]['round']) < 24
    if stop == signal.SIGINT:
      assert process.returncode == 130, said
      assert 'The same command goes on' in said
      assert 'Traceback' not in said
  result = train(pieces, '--rounds=24', '--method=pfl_scaf')
  assert result.returncode == 0, result.stderr
  assert rows(pieces) == rows(whole)
  models = [
    tf.keras.models.load_model(f / 'meta_model.keras', compile=False)
    for f in (whole, pieces)
  ]
  for a, b in zip(*(model.get_weights() for model in models), strict=True):
    np.testing.assert_array_equal(a, b)

  # Other settings are refused.
  refused = train(whole, '--rounds=24', '--method=pfl_scaf', '--seed=5')
  assert refused.returncode == 2
  assert '--seed=0 there, 5 here' in refused.stderr
  with Image.open(whole / 'convergence.png') as image:
    assert image.size[0] > 1000
    assert np.asarray(image.convert('L')).std() > 10
  assert os.listdir(whole / 'tensorboard')


@pytest.mark.slow
def test_a_correction_and_a_personalization_of_ones_own(tmp_path):
  environment = small_runs.own_module(tmp_path)

  def train_own(name, *flags):
    return train(tmp_path / name, '--rounds=2', *flags, env=environment)

  personalization = '--personalization=my_module:FewSteps(num_steps=1)'
  accuracies = {}
  for gamma in (0, 9):
    correction = f'--correction=my_module:Pull(gamma={gamma})'
    result = train_own(str(gamma), correction, personalization)
    assert result.returncode == 0, result.stderr
    title = f'Pull(gamma={gamma}), FewSteps(num_steps=1) on digits'
    assert title in result.stdout
    accuracies[gamma] = rows(tmp_path / str(gamma))[-1]
  # Without its pull the correction is none, and the rounds are Per-FedAvg's.
  result = train_own(
    'none',
    '--method=per_fed_avg',
    '--personalization=maml',
    '--maml_learning_rate=0.01',
  )
  assert result.returncode == 0, result.stderr
  key = 'evaluation/by_client/accuracy/mean'
  assert accuracies[0][key] == rows(tmp_path / 'none')[-1][key]
  assert accuracies[9][key] != accuracies[0][key]
  # The same command goes on, another argument does not.
  correction = '--correction=my_module:Pull(gamma=0.)'
  result = train_own('0', correction, personalization, '--rounds=3')
  assert 'other settings: --correction=my_module:Pull' in result.stderr
  correction = '--correction=my_module:Pull(gamma = 9)'
  result = train_own(
    '9', correction, personalization, '--rounds=3', '--baseline'
  )
  assert result.returncode == 0, result.stderr
  assert len(rows(tmp_path / '9')) == 4
  # The baseline of a method is the same without its correction.
  baseline = rows(tmp_path / '9' / 'baseline')
  assert baseline[2][key] == rows(tmp_path / 'none')[2][key]
  assert 'Per-FedAvg (without correction):' in result.stdout
  wrong = train_own('x', '--correction=my_module:Pall(gamma=1)')
  assert wrong.returncode == 2 and 'Error: ' in wrong.stderr
  assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--metod=fed_avg', "Unknown command line flag 'metod'"),
    ('--method=fed_avg --baseline', '--baseline has no effect with --method'),
  ],
)
def test_wrong_flags_say_what_would_be_right(tmp_path, flag, message):
  result = train(tmp_path / 'run', '--rounds=3', *flag.split(' '))
  assert result.returncode != 0
  assert message in result.stderr
  assert 'Traceback' not in result.stderr
  assert not os.path.exists(tmp_path / 'run')


def test_settings_are_shown_without_data():
  flags = ['--task=mini_imagenet', '--method=pfl_scaf', '--show_settings']
  result = small_runs.run_program('train', *flags)
  assert result.returncode == 0, result.stderr
  shown = result.stdout.splitlines()
  assert {'--partition=acid', '--classes_per_client=20'} <= set(shown)
  assert not any(line.startswith(('--alpha', '--maml_')) for line in shown)
  # Given again, they are the same settings.
  given = dict(line.removeprefix('--').split('=') for line in shown)
  assert given.pop('rounds') == '1000'
  again = settings_lib.Settings(
    **{name: settings_lib.parse(name, value) for name, value in given.items()}
  )
  assert again == experiment_lib.resolve(
    settings_lib.Settings(task='mini_imagenet', method='pfl_scaf')
  )
