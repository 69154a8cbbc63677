import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tasks.runs import checkpoint
from tasks.runs import errors
from tests.tasks import small_runs


def test_a_checkpoint_that_is_removed_meanwhile_gives_way_to_the_next(
  copy_run, runtime, tmp_path, monkeypatch
):
  folder = copy_run('proto')
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
  assert checkpoint.load(small_runs.experiment(), folder)[1] == 4


def test_the_final_model_alone_is_enough(copy_run, runtime):
  folder = copy_run('maml')
  some = small_runs.experiment(personalization='maml')
  expected, _ = checkpoint.load(some, folder)
  shutil.rmtree(folder.checkpoints)
  weights, round_num = checkpoint.load(some, folder)
  assert round_num == small_runs.ROUNDS
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
def test_says_what_is_damaged(copy_run, runtime, damage, message):
  folder = copy_run('proto')
  damage(folder)
  with pytest.raises(errors.UserError, match=message):
    checkpoint.load(small_runs.experiment(), folder)


def test_a_final_model_that_is_a_program_is_not_run(
  copy_run, runtime, tmp_path
):
  folder = copy_run('proto')
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
    with pytest.raises(errors.UserError, match='meta_model.keras is'):
      checkpoint.load(small_runs.experiment(), folder)
    assert not os.path.exists(written)


def test_refuses_a_round_or_a_network_of_others(copy_run, runtime):
  folder = copy_run('proto')
  with pytest.raises(errors.UserError, match='=3 is not .*: 2, 4'):
    checkpoint.load(small_runs.experiment(), folder, 3)
  other = small_runs.experiment(partition='alid')
  with pytest.raises(errors.UserError, match='of another network'):
    checkpoint.load(other, folder)
  shutil.rmtree(folder.checkpoints)
  with pytest.raises(errors.UserError, match='of another network'):
    checkpoint.load(other, folder)
  with pytest.raises(errors.UserError, match='--round=3 must be 4'):
    checkpoint.load(small_runs.experiment(), folder, 3)
