import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
from tasks.runs import training
from tests import small_models


def experiment():
  return experiment_lib.Experiment(
    settings_lib.Settings(
      method='fed_dyn',
      num_clients=8,
      clients_per_round=2,
      local_steps=2,
      rounds_per_evaluation=1,
    )
  )


def train(folder, rounds, from_round=None):
  return training.run(experiment(), folder, rounds, 3, from_round)


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


def without_times(rows):
  return [{k: v for k, v in r.items() if 'time' not in k} for r in rows]


def weights(folder):
  return tf.keras.models.load_model(folder.meta_model).get_weights()


@pytest.mark.slow
def test_rounds_that_run_again_replace_their_metrics(copy, run):
  """A run is finished, goes on, and goes back, to the same numbers."""
  before = run.read_metrics()
  assert train(copy, 6) == before == copy.read_metrics()
  tf.nest.map_structure(
    np.testing.assert_array_equal, weights(copy), weights(run)
  )
  once = without_times(train(copy, 8))
  assert [row['round'] for row in once] == list(range(9))
  model = weights(copy)
  assert without_times(train(copy, 8, from_round=6)) == once
  assert without_times(copy.read_metrics()) == once
  tf.nest.map_structure(np.testing.assert_array_equal, weights(copy), model)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line_with_a_way_back(copy, run, runtime):
  path = f'{copy.checkpoints}/round_6/variables'
  os.truncate(f'{path}/variables.data-00000-of-00001', 10)
  message = 'checkpoint of round 6 in .* is damaged.* --from_round=3'
  with pytest.raises(errors.UserError, match=message) as e:
    train(copy, 8)
  assert '\n' not in str(e.value)
  with pytest.raises(errors.UserError, match=message):
    training.load(experiment(), copy)
  # The advice is true, and what came later is no result.
  assert (
    without_times(train(copy, 4, 3)) == without_times(run.read_metrics())[:5]
  )
  assert sorted(os.listdir(copy.checkpoints)) == ['round_3', 'round_4']
  shutil.rmtree(f'{copy.checkpoints}/round_3')
  os.truncate(f'{copy.checkpoints}/round_4/saved_model.pb', 10)
  with pytest.raises(errors.UserError, match='in another --output_dir'):
    training.load(experiment(), copy)


@pytest.mark.parametrize(
  ('rounds', 'from_round', 'message'),
  [
    (5, None, '--rounds=5 must be at least 6'),
    (8, 5, '--from_round=5 is not among the checkpoints .*: 3, 6'),
  ],
)
def test_refuses_rounds_that_are_not_there(copy, rounds, from_round, message):
  before = small_models.snapshot(copy.path)
  with pytest.raises(errors.UserError, match=message):
    train(copy, rounds, from_round)
  assert small_models.snapshot(copy.path).keys() == before.keys()
  assert copy.read_metrics()[-1]['round'] == 6


@pytest.mark.slow
def test_reads_the_model_of_a_round(copy, run, runtime):
  loaded, round_num = training.load(experiment(), copy)
  assert round_num == 6
  for found, wanted in zip(loaded.trainable, weights(run), strict=True):
    np.testing.assert_array_equal(found, wanted)
  earlier, round_num = training.load(experiment(), copy, 3)
  assert round_num == 3
  assert np.any(earlier.trainable[0] != loaded.trainable[0])
  with pytest.raises(errors.UserError, match='--round=4 is not .*3, 6'):
    training.load(experiment(), copy, 4)
