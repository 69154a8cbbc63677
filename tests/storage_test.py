import asyncio
import json
import os
import pathlib
import random
import re
import shutil
import subprocess

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import storage as storage_lib

INITIAL = (tf.zeros([3]), tf.zeros([2, 2]))
HOSTILE_IDS = [
  b'',
  b' ',
  b'.',
  b'..',
  b'../x',
  b'../../../../tmp/x',
  b'/etc/passwd',
  b'*',
  b'?',
  b'[ab]',
  b'\\',
  b'x' * 10_000,
  'Gerät'.encode(),
  b'Ger\xe4t',
  b'\xff\xfe',
  b'new\nline',
  b'nul',
  b'nul\0',
  b'nul\0byte',
  b'\0',
  b'Alice',
  b'alice',
  b'1-2_3',
  b'storage.json',
  b'client_id',
]


def make(folder, run='run'):
  storage = storage_lib.ClientStorage(folder, run)
  storage.claim({'method': 'm'})
  return storage


def state(value):
  return (tf.fill([3], float(value)), tf.fill([2, 2], float(-value)))


def write(storage, client_id, round_num, value):
  written = storage.write(
    tf.constant(client_id), tf.constant(round_num), state(value)
  )
  assert written


def read(storage, client_id, round_num):
  """The value that the client had before the round; 0 if there is none."""
  found, tensors = storage.read(
    tf.constant(client_id), tf.constant(round_num), INITIAL
  )
  value = float(tensors[0][0])
  assert bool(found) == (value != 0)
  for tensor, expected in zip(tensors, state(value), strict=True):
    np.testing.assert_array_equal(tensor, expected)
  return value


def index_files(storage):
  """The index files of all versions, by round."""
  files = pathlib.Path(storage.folder).glob('clients/*/*/*.index')
  return sorted(files, key=lambda path: path.name)


def versions(storage):
  """For each client id, as its folder says, the rounds of its versions."""
  folders = pathlib.Path(storage.folder).glob('clients/*/*')
  return {
    (folder / 'client_id').read_bytes(): {
      int(path.stem) for path in folder.glob('*.index')
    }
    for folder in folders
  }


def test_a_round_reads_the_newest_version_of_an_earlier_round(tmp_path):
  storage = make(tmp_path)
  for round_num in (7, 1, 3):
    write(storage, 'a', round_num, 10 + round_num)
  rounds = [1, 2, 3, 4, 7, 8, 999_999_999]
  assert [read(storage, 'a', r) for r in rounds] == [0, 11, 11, 13, 13, 17, 17]
  assert read(storage, 'b', 8) == 0


def test_a_round_that_is_run_again_replaces_what_it_wrote(tmp_path):
  storage = make(tmp_path)
  write(storage, 'a', 1, 1)
  write(storage, 'a', 2, 2)
  assert read(storage, 'a', 2) == 1
  write(storage, 'a', 2, 20)
  assert read(storage, 'a', 2) == 1
  assert read(storage, 'a', 3) == 20
  assert versions(storage) == {b'a': {1, 2}}


def test_the_same_inside_a_graph(tmp_path):
  storage = make(tmp_path)

  @tf.function
  def add_one(client_id, round_num):
    found, tensors = storage.read(client_id, round_num, INITIAL)
    tensors = [tensor + 1.0 for tensor in tensors]
    with tf.control_dependencies(
      [storage.write(client_id, round_num, tensors)]
    ):
      return tf.identity(found), tensors[0]

  for round_num in (1, 2, 3):
    found, tensor = add_one(tf.constant('a'), tf.constant(round_num))
    assert found == (round_num > 1)
    np.testing.assert_array_equal(tensor, np.full(3, round_num))


def test_a_write_is_done_when_its_result_is_there(tmp_path):
  storage = make(tmp_path)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    written = storage.write(
      tf.constant('a'), tf.constant(1), [tf.ones([3]), -tf.ones([2, 2])]
    )
    assert session.run(written)
  assert read(storage, 'a', 2) == 1
  storage.rollback(0)
  assert read(storage, 'a', 2) == 0


def test_hostile_ids_stay_inside_and_apart(tmp_path):
  storage = make(tmp_path / 'inner' / 'storage')
  outside = small_models.snapshot(tmp_path).keys()
  for value, client_id in enumerate(HOSTILE_IDS, start=1):
    write(storage, client_id, 1, value)
  for value, client_id in enumerate(HOSTILE_IDS, start=1):
    assert read(storage, client_id, 2) == value
  assert versions(storage) == {client_id: {1} for client_id in HOSTILE_IDS}
  new = small_models.snapshot(tmp_path).keys() - outside
  name = r'\d+_\d+'
  allowed = re.compile(
    r'inner/storage/(clients(/\d{1,3}(/NAME(/(client_id|000000001\.'
    r'(index|data-00000-of-00001)))?)?)?'
    r'|journal(/000000001(/\d{1,3}-NAME)?)?)'.replace('NAME', name)
  )
  assert [path for path in new if not allowed.fullmatch(path)] == []


def test_a_state_of_another_client_is_an_error(tmp_path):
  # As if the ids had the same hashes.
  storage = make(tmp_path)
  write(storage, 'a', 1, 1)
  write(storage, 'b', 1, 2)
  first, second = (path.parent for path in index_files(storage))
  shutil.copytree(first, second, dirs_exist_ok=True)
  found = {(first / 'client_id').read_bytes(), b'a', b'b'}
  owner = (first / 'client_id').read_bytes()
  (other,) = found - {owner}
  read(storage, owner, 2)
  with pytest.raises(tf.errors.InvalidArgumentError, match='same hash'):
    read(storage, other, 2)
  # TFF's graphs are of the first kind, in which nothing runs by itself.
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    _, tensors = storage.read(
      tf.constant(other), tf.constant(2), [tf.zeros([3]), tf.zeros([2, 2])]
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match='same hash'):
      session.run(tensors[0])


@pytest.mark.parametrize('suffix', ['index', 'data-00000-of-00001'])
def test_a_damaged_file_is_never_a_wrong_number(tmp_path, suffix):
  storage = make(tmp_path)
  write(storage, 'a', 1, 1)
  path = index_files(storage)[0].with_suffix('.' + suffix)
  good = path.read_bytes()
  refused = 0
  for i in range(len(good)):
    damaged = bytes([good[i] ^ (1 << i % 8)])
    path.write_bytes(good[:i] + damaged + good[i + 1 :])
    try:
      assert read(storage, 'a', 2) == 1
    except tf.errors.OpError:
      refused += 1
  # Some bytes near the end of an index have no meaning.
  assert refused >= (0.6 if suffix == 'index' else 1) * len(good)
  for size in range(0, len(good), 5):
    path.write_bytes(good[:size])
    with pytest.raises(tf.errors.OpError):
      read(storage, 'a', 2)
  path.write_bytes(good)
  assert read(storage, 'a', 2) == 1


def test_a_half_written_state_is_as_never_written(tmp_path):
  storage = make(tmp_path)
  write(storage, 'a', 1, 1)
  for round_num in (2, 3):
    write(storage, 'a', round_num, round_num)
    index_files(storage)[-1].unlink()
  write(storage, 'b', 1, 5)
  folder = next(
    path.parent
    for path in index_files(storage)
    if (path.parent / 'client_id').read_bytes() == b'a'
  )
  leftovers = [
    folder / '000000004.index.tempstate123',
    folder / '000000004.data-00000-of-00001.tempstate123',
  ]
  for path in leftovers:
    path.write_bytes(b'half')
  assert read(storage, 'a', 9) == 1
  assert read(storage, 'b', 9) == 5
  storage.rollback(1)
  assert read(storage, 'a', 9) == 1
  assert sorted(path.name for path in folder.iterdir()) == [
    '000000001.data-00000-of-00001',
    '000000001.index',
    'client_id',
  ]
  write(storage, 'a', 2, 2)
  assert read(storage, 'a', 3) == 2


def test_a_state_is_a_checkpoint_that_tensorflow_reads(tmp_path):
  storage = make(tmp_path)
  write(storage, 'Gerät', 12, 5)
  path = index_files(storage)[0].with_suffix('')
  assert path.name == '000000012'
  reader = tf.train.load_checkpoint(str(path))
  assert reader.get_variable_to_shape_map() == {
    'client_id': [],
    'state/0': [3],
    'state/1': [2, 2],
  }
  assert reader.get_tensor('client_id').decode() == 'Gerät'
  np.testing.assert_array_equal(
    reader.get_tensor('state/1'), -5 * np.ones(4).reshape(2, 2)
  )


@pytest.mark.parametrize('seed', range(4))
def test_prune_and_rollback_against_a_dictionary(tmp_path, seed):
  """A random run with checkpoints, crashes and retries, and its model."""
  storage = make(tmp_path)
  choose = random.Random(seed)
  clients = ['a', 'b', 'c', 'd', 'e']
  written = {client: {} for client in clients}
  checkpoint, done, value = 0, 0, 0

  def expected(client, round_num):
    earlier = [r for r in written[client] if r < round_num]
    return written[client][max(earlier)] if earlier else 0

  for _ in range(25):
    done += 1
    for client in choose.sample(clients, choose.choice([0, 1, 2, 2, 4])):
      value += 1
      write(storage, client, done, value)
      written[client][done] = value
    action = choose.choice(['go on', 'save', 'save', 'crash', 'retry'])
    if action == 'retry':
      done -= 1
    if action == 'save':
      checkpoint = max(checkpoint, choose.randint(max(0, done - 3), done))
      storage.prune(checkpoint)
      for history in written.values():
        kept = max((r for r in history if r <= checkpoint), default=0)
        for r in [r for r in history if r < kept]:
          del history[r]
    if action == 'crash':
      done = choose.randint(checkpoint, done)
      storage.rollback(done)
      for history in written.values():
        for r in [r for r in history if r > done]:
          del history[r]
    # Exactly what is needed is there, and it is right.
    found = versions(storage)
    for client in clients:
      assert found.get(client.encode(), set()) == set(written[client])
    for round_num in range(checkpoint + 1, done + 2):
      for client in clients:
        assert read(storage, client, round_num) == expected(client, round_num)
  assert checkpoint > 5, 'The random run proves nothing.'


def test_prune_and_rollback_of_an_empty_storage(tmp_path):
  storage = make(tmp_path)
  before = small_models.snapshot(tmp_path)
  storage.prune(3)
  storage.rollback(0)
  assert small_models.snapshot(tmp_path) == before


@pytest.mark.parametrize(
  ('claim', 'run', 'method', 'message'),
  [
    (None, 'other', {'method': 'm'}, "another run.*'run'.*'other'"),
    (None, None, {'method': 'm'}, "already holds.*'run'"),
    (None, 'run', {'method': 'n'}, "another method.*'m'.*'n'"),
    (None, 'run', {}, 'another method'),
    (None, 'run', {'method': 'm', 'x': 1}, 'another x'),
    (b'', 'run', {'method': 'm'}, 'storage.json'),
    (b'{"format": 1, "meth', 'run', {'method': 'm'}, 'storage.json is damaged'),
    (b'\xff\xfe\x00', 'run', {'method': 'm'}, 'storage.json is damaged'),
    (b'[[1, 2]]', 'run', {'method': 'm'}, 'storage.json is damaged'),
    ('a folder', 'run', {'method': 'm'}, 'storage.json'),
    ('nothing', 'run', {'method': 'm'}, 'no device storage'),
    ('nothing', None, {'method': 'm'}, 'no device storage'),
  ],
)
def test_a_folder_that_is_not_ours_is_refused_and_left(
  tmp_path, claim, run, method, message
):
  storage = make(tmp_path)
  write(storage, 'a', 1, 1)
  path = tmp_path / 'storage.json'
  if claim is not None:
    path.unlink()
  if claim == 'a folder':
    path.mkdir()
  elif isinstance(claim, bytes):
    path.write_bytes(claim)
  before = small_models.snapshot(tmp_path)
  with pytest.raises(storage_lib.ClientStorageError, match=message):
    storage_lib.ClientStorage(tmp_path, run).claim(method)
  assert small_models.snapshot(tmp_path) == before


def test_a_folder_that_is_a_file_or_cannot_be_made_is_refused(tmp_path):
  file = tmp_path / 'file'
  file.write_text('mine')
  for folder in (file, file / 'storage', '/proc/storage'):
    with pytest.raises(storage_lib.ClientStorageError, match=str(folder)):
      make(folder)
  assert file.read_text() == 'mine'


def test_a_claim_can_be_repeated_by_its_run_only(tmp_path):
  folder = tmp_path / 'new' / 'folder'
  shapes = {'method': 'm', 'shapes': [(3,), [2, 2]]}
  storage_lib.ClientStorage(folder, 'run').claim(shapes)
  storage_lib.ClientStorage(str(folder) + '/', 'run').claim(shapes)
  assert json.loads((folder / 'storage.json').read_text())['run'] == 'run'
  unnamed = tmp_path / 'unnamed'
  storage_lib.ClientStorage(unnamed).claim({})
  with pytest.raises(storage_lib.ClientStorageError, match='already holds'):
    storage_lib.ClientStorage(unnamed).claim({})


@pytest.mark.parametrize('folder', ['', 'a*b', 'a?', 'a[1]', 'a\\b'])
def test_a_path_with_a_wildcard_is_refused(folder):
  with pytest.raises(storage_lib.ClientStorageError, match='path without'):
    storage_lib.ClientStorage(folder)


def test_a_write_that_fails_is_an_error_and_works_later(tmp_path):
  storage = make(tmp_path)
  write(storage, 'a', 1, 1)
  os.rename(tmp_path / 'clients', tmp_path / 'away')
  (tmp_path / 'clients').write_text('in the way')
  with pytest.raises(tf.errors.OpError):
    write(storage, 'a', 2, 2)
  (tmp_path / 'clients').unlink()
  os.rename(tmp_path / 'away', tmp_path / 'clients')
  assert read(storage, 'a', 3) == 1
  write(storage, 'a', 2, 2)
  assert read(storage, 'a', 3) == 2


def test_prune_leaves_what_a_running_round_writes(tmp_path):
  # `tff.learning.programs.train_model` saves while the next round is running.
  storage = make(tmp_path)
  for round_num in (1, 2):
    write(storage, 'a', round_num, round_num)
  writing = index_files(storage)[0].with_name('000000003.index.tempstate123')
  writing.write_bytes(b'half')
  storage.prune(2)
  assert versions(storage) == {b'a': {2}}
  assert writing.read_bytes() == b'half'


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 64 KB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder],
    capture_output=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip('mounting a file system needs root')
  yield folder
  subprocess.run(['umount', folder], check=True)


def test_a_full_disk_is_an_error_and_the_old_state_stays(small_disk):
  storage = make(small_disk / 'storage')
  write(storage, 'a', 1, 1)
  fill = small_disk / 'fill'
  with pytest.raises(OSError), fill.open('wb', buffering=0) as file:
    while True:
      file.write(bytes(1024))
  with pytest.raises(tf.errors.OpError):
    write(storage, 'a', 2, 2)
  assert read(storage, 'a', 3) == 1
  fill.unlink()
  write(storage, 'a', 2, 2)
  assert read(storage, 'a', 3) == 2


@pytest.mark.parametrize('keep_first', [False, True])
def test_the_state_manager_keeps_the_storage_in_step(tmp_path, keep_first):
  storage = make(tmp_path / 'storage')
  manager = storage_lib.StorageStateManager(
    tff.program.FileProgramStateManager(
      tmp_path / 'state', keep_total=2 + keep_first, keep_first=keep_first
    ),
    storage,
  )

  async def run():
    await manager.save([0.0], 0)
    for round_num in (1, 2, 3, 4):
      write(storage, 'a', round_num, round_num)
      await manager.save([float(round_num)], round_num)
    assert (await manager.get_versions())[-2:] == [3, 4]
    assert versions(storage) == {b'a': {3, 4}}
    write(storage, 'a', 5, 5)
    write(storage, 'b', 5, 5)
    loaded, version = await manager.load_latest([0.0])
    assert (loaded, version) == ([4.0], 4)
    assert versions(storage) == {b'a': {3, 4}, b'b': set()}
    # To look at an older version changes nothing.
    assert await manager.load(3, [0.0]) == [3.0]
    assert versions(storage)[b'a'] == {3, 4}
    if keep_first:
      assert await manager.load(0, [0.0]) == [0.0]
    shutil.rmtree(tmp_path / 'state')
    with pytest.raises(storage_lib.ClientStorageError, match='no checkpoint'):
      await manager.load_latest([0.0])
    await manager.remove_all()
    assert await manager.load_latest([0.0]) == (None, 0)
    assert read(storage, 'a', 9) == 0

  with asyncio.Runner() as runner:
    runner.run(run())
