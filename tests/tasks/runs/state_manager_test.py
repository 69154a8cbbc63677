import asyncio
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from tasks.runs import folder as folder_lib
from tasks.runs import state_manager

ROWS = 'round,a\r\n' + ''.join(f'{r},{r / 7}\r\n' for r in range(21))


def state(round_num):
  return {'weights': np.full([3], round_num, np.float32), 'round': round_num}


def rows_until(round_num):
  return '\r\n'.join(ROWS.split('\r\n')[: round_num + 2]) + '\r\n'


def load(manager, version):
  return asyncio.run(manager.load(version, state(0)))


@pytest.fixture
def folder(tmp_path):
  """The folder of a run with checkpoints of 10 and 20, and rows up to 20."""
  made = folder_lib.RunFolder(str(tmp_path))
  manager = state_manager.StateManager(made)
  for version in (0, 10, 20):
    (tmp_path / 'metrics.csv').write_text(rows_until(version), newline='')
    asyncio.run(manager.save(state(version), version))
  return made


def test_goes_on_from_the_last_of_two(folder):
  manager = state_manager.StateManager(folder)
  assert asyncio.run(manager.get_versions()) == [10, 20]
  assert manager.prepare() == 20
  for version in (10, 20):
    np.testing.assert_array_equal(load(manager, version)['weights'], version)
  loaded, version = asyncio.run(manager.load_latest(state(0)))
  assert (int(loaded['round']), version) == (20, 20)


def test_everything_is_on_the_disk_before_a_checkpoint_counts(
  tmp_path, monkeypatch
):
  synced = []
  replace, fsync = os.replace, os.fsync

  def noting_fsync(descriptor):
    synced.append(os.readlink(f'/proc/self/fd/{descriptor}'))
    fsync(descriptor)

  def noting_replace(old, new):
    # By now the files, their folders and the record itself are on the disk.
    path = os.path.dirname(new)
    there = {os.path.join(p, n) for p, _, ns in os.walk(path) for n in ns}
    there |= {p for p, *_ in os.walk(path)}
    assert len(there) > 5 and there <= set(synced)
    assert os.path.dirname(path) in synced
    replace(old, new)
    synced.append('record')

  monkeypatch.setattr(os, 'fsync', noting_fsync)
  monkeypatch.setattr(os, 'replace', noting_replace)
  made = folder_lib.RunFolder(str(tmp_path))
  asyncio.run(state_manager.StateManager(made).save(state(3), 3))
  assert synced[-2:] == [
    'record',
    os.path.join(made.checkpoints, 'program_state_3'),
  ]


@pytest.mark.parametrize(
  'content',
  [
    ROWS + '21,3.0\r\n22,3.1\r\n',
    ROWS + '21,3',
    rows_until(14),
    ROWS.replace('2.0', '2.1'),
    ROWS.replace('\r\n5,', '\r\n6,'),
    'another,file\r\n',
    '',
    None,
  ],
)
def test_metrics_become_those_of_the_checkpoint(folder, content):
  os.remove(folder.metrics)
  if content is not None:
    with open(folder.metrics, 'w', newline='') as file:
      file.write(content)
  manager = state_manager.StateManager(folder)
  assert manager.has_metrics() == bool(content and content.startswith(ROWS))
  manager.prepare()
  with open(folder.metrics, newline='') as file:
    assert file.read() == ROWS
  assert manager.has_metrics()
  assert [row['round'] for row in folder.read_metrics()] == list(range(21))


def test_goes_back_to_the_checkpoint_before(folder):
  manager = state_manager.StateManager(folder)
  with pytest.raises(
    state_manager.CheckpointError, match='--from_round=15 is not .*: 10, 20'
  ):
    manager.prepare(15)
  assert manager.prepare(10) == 10
  assert os.listdir(folder.checkpoints) == ['program_state_10']
  assert folder.read_metrics()[-1]['round'] == 10
  asyncio.run(manager.save(state(20), 20))
  assert asyncio.run(manager.get_versions()) == [10, 20]


def test_a_checkpoint_without_a_record_was_not_finished(folder):
  os.remove(os.path.join(folder.checkpoints, 'program_state_20', 'record.json'))
  manager = state_manager.StateManager(folder)
  assert asyncio.run(manager.get_versions()) == [10]
  assert manager.prepare() == 10
  assert os.listdir(folder.checkpoints) == ['program_state_10']
  assert folder.read_metrics()[-1]['round'] == 10


def test_killed_before_the_first_checkpoint(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path))
  os.makedirs(tmp_path / 'checkpoints' / 'program_state_0')
  (tmp_path / 'metrics.csv').write_text('round,a\n0,1\n1')
  assert state_manager.StateManager(folder).prepare() == 0
  assert not os.listdir(folder.checkpoints)
  assert not os.path.exists(folder.metrics)


@pytest.mark.parametrize('records_only', [True, False])
def test_lost_checkpoints_are_no_new_run(folder, records_only):
  for root, folders, files in os.walk(folder.checkpoints, topdown=False):
    for name in files:
      if not records_only or name == 'record.json':
        os.remove(os.path.join(root, name))
    if not records_only:
      for name in folders:
        os.rmdir(os.path.join(root, name))
  with pytest.raises(
    state_manager.CheckpointError,
    match='record.json is lost' if records_only else 'checkpoints is lost',
  ):
    state_manager.StateManager(folder).prepare()
  assert folder.read_metrics()[-1]['round'] == 20


def flip(path):
  with open(path, 'rb+') as file:
    content = bytearray(file.read())
    content[len(content) // 2] ^= 4
    file.seek(0)
    file.write(content)


DAMAGES = {
  'flipped': flip,
  'truncated': lambda path: os.truncate(path, os.path.getsize(path) // 2),
  'empty': lambda path: os.truncate(path, 0),
  'removed': os.remove,
  'folder': lambda path: (os.remove(path), os.mkdir(path)),
}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize(
  'name',
  [
    'saved_model.pb',
    'variables/variables.index',
    'variables/variables.data-00000-of-00001',
  ],
)
def test_a_damaged_file_is_named(folder, name, damage):
  path = os.path.join(folder.checkpoints, 'program_state_20', name)
  DAMAGES[damage](path)
  manager = state_manager.StateManager(folder)
  with pytest.raises(
    state_manager.CheckpointError, match=f'round 20 is damaged: {path} is not'
  ):
    load(manager, 20)
  load(manager, 10)


@pytest.mark.parametrize(
  'content', ['', '[' * 100_000, '{}', '[]', '{"files": {}, "metrics": 1}']
)
def test_a_damaged_record_is_named(folder, content):
  path = os.path.join(folder.checkpoints, 'program_state_20', 'record.json')
  with open(path, 'w') as file:
    file.write(content)
  manager = state_manager.StateManager(folder)
  for read in (manager.prepare, lambda: load(manager, 20)):
    with pytest.raises(
      state_manager.CheckpointError, match=f'{path} cannot be read .* a copy'
    ):
      read()
  # The advice of the message is true.
  assert manager.prepare(10) == 10


def test_a_checkpoint_that_is_a_program_is_not_run(folder, tmp_path):
  secret = tmp_path / 'secret'
  secret.write_text('mine')

  class Program(tf.Module):
    @tf.function(input_signature=())
    def __call__(self):
      tf.io.write_file(str(tmp_path / 'written'), 'x')
      return {'weights': tf.io.read_file(str(secret)), 'round': 3}

  path = os.path.join(folder.checkpoints, 'program_state_20')
  tf.saved_model.save(Program(), path, signatures={})
  files = {}
  manager = state_manager.StateManager(folder)
  for name in state_manager._files(path):
    if name != 'record.json':
      files[name] = state_manager._digest(os.path.join(path, name))
  with open(os.path.join(path, 'record.json'), 'w') as file:
    json.dump({'files': files, 'metrics': ROWS}, file)
  with pytest.raises(
    state_manager.CheckpointError, match='operations of another program.*File'
  ):
    load(manager, 20)
  assert not os.path.exists(tmp_path / 'written')


def test_a_reader_makes_no_folder(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path / 'none'))
  manager = state_manager.StateManager(folder)
  assert asyncio.run(manager.get_versions()) is None
  assert not os.path.exists(folder.path)
