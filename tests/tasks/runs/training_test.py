import collections
import glob
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
from tasks.runs import training


def experiment():
  return experiment_lib.Experiment(
    settings_lib.Settings(num_clients=8, clients_per_round=2, local_steps=2)
  )


def train(folder, rounds, from_round=None):
  training.run(experiment(), folder, rounds, 3, from_round)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of a run of 6 rounds, with checkpoints of 3 and 6."""
  folder = folder_lib.RunFolder(str(tmp_path_factory.mktemp('runs') / 'run'))
  train(folder, 6)
  return folder


@pytest.fixture
def copy(run, tmp_path):
  path = str(tmp_path / 'copy')
  shutil.copytree(run.path, path)
  return folder_lib.RunFolder(path)


def points(folder):
  """TensorBoard's points: how many times each round of each metric is there."""
  found = collections.Counter()
  for name in os.listdir(folder.tensorboard):
    path = os.path.join(folder.tensorboard, name)
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        number = float(tf.make_ndarray(value.tensor))
        found[value.tag, event.step, np.float32(number)] += 1
  return found


def expected_points(folder):
  return {
    (name, int(row['round']), np.float32(value)): 1
    for row in folder.read_metrics()
    for name, value in row.items()
    if name != 'round'
  }


def without_times(rows):
  return [{k: v for k, v in r.items() if 'time' not in k} for r in rows]


def test_metrics_and_tensorboard_follow_the_checkpoint(copy, run):
  # A killed process has gone on for a round, and has lost TensorBoard's points.
  with open(copy.metrics) as file:
    content = file.read()
  last = content.splitlines()[-1]
  with open(copy.metrics, 'a') as file:
    file.write('7' + last[1:] + '\n')
  (name,) = os.listdir(copy.tensorboard)
  path = os.path.join(copy.tensorboard, name)
  os.truncate(path, os.path.getsize(path) // 2)
  train(copy, 6)
  assert copy.read_metrics() == run.read_metrics()
  assert points(copy) == expected_points(copy)

  # The run goes on, and goes back and on again, to the same numbers.
  train(copy, 7)
  once = copy.read_metrics()
  assert [row['round'] for row in once] == list(range(8))
  train(copy, 7, from_round=6)
  assert without_times(copy.read_metrics()) == without_times(once)
  assert points(copy) == expected_points(copy)


def states(folder, round_num):
  """The files of the client states written in a round."""
  pattern = os.path.join(
    folder.storage, '*', 'states', '*', f'{round_num:09d}-*'
  )
  return glob.glob(pattern)


def advised(error):
  return int(re.search(r'--from_round=(\d+)', str(error)).group(1))


def test_a_lost_client_state_and_the_way_back(copy, run):
  os.remove(states(copy, 5)[0])
  with pytest.raises(errors.UserError, match='states are lost') as e:
    train(copy, 8)
  # The advice is true.
  train(copy, 6, advised(e.value))
  assert without_times(copy.read_metrics()) == without_times(run.read_metrics())


def test_a_damaged_checkpoint_and_the_way_back(copy, run):
  path = 'program_state_6/variables/variables.data-00000-of-00001'
  path = os.path.join(copy.checkpoints, path)
  os.truncate(path, 0)
  with pytest.raises(errors.UserError, match=f'{path} is not .*--from_round=3'):
    train(copy, 8)
  train(copy, 6, 3)
  assert without_times(copy.read_metrics()) == without_times(run.read_metrics())


def test_no_way_back_is_promised_where_there_is_none(copy):
  for version in (3, 6):
    os.truncate(
      os.path.join(
        copy.checkpoints, f'program_state_{version}', 'saved_model.pb'
      ),
      0,
    )
  with pytest.raises(errors.UserError) as e:
    train(copy, 8)
  assert 'from_round' not in str(e.value)
  assert 'Or begin a new run in another --output_dir.' in str(e.value)


def test_fewer_rounds_than_are_done_change_nothing(copy):
  before = copy.read_metrics()
  with pytest.raises(errors.UserError, match='--rounds=5 must be at least 6'):
    train(copy, 5)
  assert copy.read_metrics() == before
