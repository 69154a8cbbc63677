import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tasks.runs import errors
from tasks.runs import training
from tests import small_models
from tests.tasks import small_runs


def experiment():
  return small_runs.experiment(**small_runs.OPTIONS['proto'])


def train(folder, rounds, from_round=None):
  return small_runs.train(folder, 'proto', rounds, from_round)


@pytest.fixture
def run(runs):
  """The folder of a run of 4 rounds, with checkpoints of 2 and 4."""
  return runs['proto']


@pytest.fixture
def copy(copy_run):
  return copy_run('proto')


def without_times(rows):
  return [{k: v for k, v in r.items() if 'time' not in k} for r in rows]


def weights(folder):
  return tf.keras.models.load_model(folder.meta_model).get_weights()


@pytest.mark.slow
def test_a_finished_run_goes_on(copy, run):
  """A run that is finished goes on; the next test has one that goes back."""
  before = run.read_metrics()
  assert train(copy, 4) == before == copy.read_metrics()
  tf.nest.map_structure(
    np.testing.assert_array_equal, weights(copy), weights(run)
  )
  rows = train(copy, 6)
  assert [row['round'] for row in rows] == list(range(7))
  assert copy.read_metrics() == rows and rows[:5] == before


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line_with_a_way_back(copy, run, runtime):
  path = f'{copy.checkpoints}/round_4/variables'
  os.truncate(f'{path}/variables.data-00000-of-00001', 10)
  message = 'checkpoint of round 4 in .* is damaged.* --from_round=2'
  with pytest.raises(errors.UserError, match=message) as e:
    train(copy, 6)
  assert '\n' not in str(e.value)
  with pytest.raises(errors.UserError, match=message):
    training.load(experiment(), copy)
  # The advice is true, and what came later is no result.
  rows, expected = map(without_times, (train(copy, 3, 2), run.read_metrics()))
  assert rows[:3] == expected[:3] and len(rows) == 4
  loss = 'client_work/train/loss'
  assert rows[3][loss] == expected[3][loss]
  assert sorted(os.listdir(copy.checkpoints)) == ['round_2', 'round_3']
  shutil.rmtree(f'{copy.checkpoints}/round_2')
  os.truncate(f'{copy.checkpoints}/round_3/saved_model.pb', 10)
  with pytest.raises(errors.UserError, match='in another --output_dir'):
    training.load(experiment(), copy)


@pytest.mark.parametrize(
  ('rounds', 'from_round', 'message'),
  [
    (3, None, '--rounds=3 must be at least 4'),
    (8, 3, '--from_round=3 is not among the checkpoints .*: 2, 4'),
  ],
)
def test_refuses_rounds_that_are_not_there(copy, rounds, from_round, message):
  before = small_models.snapshot(copy.path)
  with pytest.raises(errors.UserError, match=message):
    train(copy, rounds, from_round)
  assert small_models.snapshot(copy.path).keys() == before.keys()
  assert copy.read_metrics()[-1]['round'] == 4


@pytest.mark.slow
def test_reads_the_model_of_a_round(copy, run, runtime):
  loaded, round_num = training.load(experiment(), copy)
  assert round_num == 4
  for found, wanted in zip(loaded.trainable, weights(run), strict=True):
    np.testing.assert_array_equal(found, wanted)
  earlier, round_num = training.load(experiment(), copy, 2)
  assert round_num == 2
  assert np.any(earlier.trainable[0] != loaded.trainable[0])
  with pytest.raises(errors.UserError, match='--round=3 is not .*2, 4'):
    training.load(experiment(), copy, 3)
