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

_FLAGS = [
  '--num_clients=8',
  '--clients_per_round=3',
  '--local_steps=3',
  '--rounds_per_checkpoint=3',
  '--rounds_per_evaluation=2',
]


def command(folder, *flags):
  return [
    *(sys.executable, '-m', 'tasks.train', f'--output_dir={folder}'),
    *_FLAGS,
    *flags,
  ]


def train(folder, *flags):
  return subprocess.run(
    command(folder, *flags), capture_output=True, text=True, timeout=300
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
    try:
      if int(rows(folder)[-1]['round']) >= round_num:
        return
    except (FileNotFoundError, IndexError, ValueError):
      pass
    time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_is_killed_and_interrupted_ends_as_one_never_stopped(
  tmp_path,
):
  whole, pieces = tmp_path / 'whole', tmp_path / 'pieces'
  result = train(whole, '--rounds=60', '--method=pfl_scaf')
  assert result.returncode == 0, result.stderr
  assert 'personalized accuracy' in result.stdout
  assert 'accuracy' in result.stderr and '60/60' in result.stderr

  for stop, at in ((signal.SIGKILL, 10), (signal.SIGINT, 20)):
    process = subprocess.Popen(
      command(pieces, '--rounds=60', '--method=pfl_scaf'),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    wait_for_round(pieces, at, process)
    process.send_signal(stop)
    # Ends only when no worker is left that holds the pipes.
    _, said = process.communicate(timeout=60)
    assert int(rows(pieces)[-1]['round']) < 60
    if stop == signal.SIGINT:
      assert process.returncode == 130
      assert 'The same command goes on' in said
      assert 'Traceback' not in said
  result = train(pieces, '--rounds=60', '--method=pfl_scaf')
  assert result.returncode == 0, result.stderr
  assert rows(pieces) == rows(whole)
  models = [
    tf.keras.models.load_model(f / 'meta_model.keras', compile=False)
    for f in (whole, pieces)
  ]
  for a, b in zip(*(model.get_weights() for model in models), strict=True):
    np.testing.assert_array_equal(a, b)

  # A finished run is not run again, and others' settings are refused.
  before = (whole / 'metrics.csv').read_bytes()
  assert train(whole, '--rounds=60', '--method=pfl_scaf').returncode == 0
  assert (whole / 'metrics.csv').read_bytes() == before
  refused = train(whole, '--rounds=60', '--method=pfl_scaf', '--seed=5')
  assert refused.returncode == 2
  assert '--seed=0 there, 5 here' in refused.stderr
  refused = train(whole, '--rounds=50', '--method=pfl_scaf')
  assert refused.returncode == 2
  assert '--rounds=50 must be at least 60' in refused.stderr
  with Image.open(whole / 'convergence.png') as image:
    assert image.size[0] > 1000
    assert np.asarray(image.convert('L')).std() > 10
  assert os.listdir(whole / 'tensorboard')


def test_a_damaged_state_of_a_device_is_an_error_that_names_it(tmp_path):
  folder = tmp_path / 'run'
  assert train(folder, '--rounds=4').returncode == 0
  for path in (folder / 'devices').rglob('*.data-*'):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  result = train(folder, '--rounds=30')
  assert result.returncode == 2
  assert 'Error: A round failed:' in result.stderr
  assert str(folder / 'devices') in result.stderr
  assert 'Traceback' not in result.stderr
