import os
import pathlib
import re
import shutil
import stat
import subprocess

import numpy as np
import pytest
import small_models
import storage_runs
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import runtime as runtime_lib
from tff_debias import storage as storage_lib
from tff_debias.runtime import contexts

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
  b'%s',
  b'client_id',
]


def test_a_run_reads_the_newest_state_of_its_rounds(tmp_path):
  runs = [storage_runs.Run(tmp_path)]
  for values in ({'a': 11}, {'b': 12}, {'a': 13}, {'b': 14, 'c': 15}):
    runs.append(runs[-1].round(values))
  for client_id, values in {
    'a': [0, 11, 11, 13, 13],
    'b': [0, 0, 12, 12, 14],
    'c': [0, 0, 0, 0, 15],
  }.items():
    assert [run.read(client_id) for run in runs] == values
  assert runs[-1].lineage.num_clients == 3


def test_a_round_that_is_run_again_never_reads_what_it_wrote(tmp_path):
  before = storage_runs.Run(tmp_path).round({'a': 1, 'b': 2})
  first = before.round({'a': 10})
  again = before.round({'a': 11, 'b': 12})
  other = before.round({'b': 22})
  for run, values in (
    (before, (1, 2)),
    (first, (10, 2)),
    (again, (11, 12)),
    (other, (1, 22)),
  ):
    assert (run.read('a'), run.read('b')) == values
  assert first.round({'b': 3}).read('a') == 10
  assert other.round({'a': 4}).read('b') == 22


def test_a_round_of_nobody_reads_nothing_of_another_attempt(tmp_path):
  before = storage_runs.Run(tmp_path).round({'a': 1})
  other = before.round({'a': 2, 'b': 3})
  nothing = storage_lib.receipt(*[tf.constant(0, tf.int64)] * 2)
  lineage = before.storage.finish_round(before.lineage, tf.constant(0), nothing)
  nobody = storage_runs.Run(tmp_path, lineage)
  assert (nobody.read('a'), nobody.read('b')) == (1, 0)
  assert (other.read('a'), other.read('b')) == (2, 3)
  assert nobody.round({'b': 4}).read('a') == 1


def test_two_runs_do_not_see_each_other(tmp_path):
  one = storage_runs.Run(tmp_path).round({'a': 1})
  two = storage_runs.Run(tmp_path)
  assert two.read('a') == 0
  two = two.round({'a': 2})
  assert (one.read('a'), two.read('a')) == (1, 2)


def test_the_same_inside_a_graph(tmp_path):
  run = storage_runs.Run(tmp_path)

  @tf.function
  def add_one(lineage, client_id):
    tensors, old, _ = run.storage.read(lineage, client_id, storage_runs.INITIAL)
    new = run.storage.write(lineage, client_id, [t + 1.0 for t in tensors])
    return storage_lib.receipt(old, new), tensors[0]

  for round_num in range(3):
    receipt, tensor = add_one(run.lineage, tf.constant('a'))
    np.testing.assert_array_equal(tensor, np.full(3, round_num))
    run = run.finish([receipt])


def test_a_write_is_done_when_its_token_is_there(tmp_path):
  # TFF's graphs are of the first kind, in which nothing runs by itself.
  run = storage_runs.Run(tmp_path)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    lineage = storage_lib.Lineage(
      *(tf.constant(part.numpy()) for part in run.lineage)
    )
    token = run.storage.write(
      lineage, tf.constant('a'), [tf.ones([3]), -tf.ones([2, 2])]
    )
    token = session.run(token)
  receipt = storage_lib.receipt(tf.constant(0, tf.int64), tf.constant(token))
  assert run.finish([receipt]).read('a') == 1


def test_hostile_ids_stay_inside_and_apart(tmp_path):
  run = storage_runs.Run(tmp_path / 'inner' / 'storage')
  outside = small_models.snapshot(tmp_path).keys()
  values = {client_id: i for i, client_id in enumerate(HOSTILE_IDS, start=1)}
  run = run.round(values)
  assert {client_id: run.read(client_id) for client_id in values} == values
  folders = run.folder.glob('clients/*/*/client_id')
  assert sorted(path.read_bytes() for path in folders) == sorted(values)
  new = small_models.snapshot(tmp_path).keys() - outside
  allowed = re.compile(
    r'inner/storage/RUN(/clients(/\d{1,3}(/NAME(/(client_id|000000001-TOKEN\.'
    r'(index|data-00000-of-00001)))?)?)?'
    r'|/journal(/000000001(/TOKEN-\d{1,3}-NAME)?)?)?'.replace(
      'NAME', r'\d+_\d+'
    )
    .replace('TOKEN', r'\d{19}')
    .replace('RUN', run.folder.name)
  )
  assert [path for path in new if not allowed.fullmatch(path)] == []


def test_a_state_of_another_client_is_an_error(tmp_path):
  # As if the ids had the same hashes.
  run = storage_runs.Run(tmp_path).round({'a': 1, 'b': 2})
  first, second = (
    pathlib.Path(storage_runs.client_folder(tmp_path, name)) for name in 'ab'
  )
  for path in second.glob('0*'):
    path.unlink()
  shutil.copytree(first, second, dirs_exist_ok=True)
  assert run.read('a') == 1
  with pytest.raises(tf.errors.InvalidArgumentError, match='same hash'):
    run.read('b')
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    lineage = storage_lib.Lineage(
      *(tf.constant(part.numpy()) for part in run.lineage)
    )
    tensors, _, _ = run.storage.read(
      lineage, tf.constant('b'), [tf.zeros([3]), tf.zeros([2, 2])]
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match='same hash'):
      session.run(tensors[0])


def test_an_older_state_under_a_newer_name_is_an_error(tmp_path):
  run = storage_runs.Run(tmp_path).round({'a': 1}).round({'a': 2})
  old, new = storage_runs.state_files(tmp_path)
  for suffix in ('.index', '.data-00000-of-00001'):
    shutil.copy(old[: -len('.index')] + suffix, new[: -len('.index')] + suffix)
  with pytest.raises(tf.errors.InvalidArgumentError, match='another state'):
    run.read('a')


@pytest.mark.parametrize('suffix', ['index', 'data-00000-of-00001'])
def test_a_damaged_file_is_never_a_wrong_number(tmp_path, suffix):
  run = storage_runs.Run(tmp_path).round({'a': 1})
  path = pathlib.Path(storage_runs.state_files(tmp_path)[0])
  path = path.with_suffix('.' + suffix)
  good = path.read_bytes()
  refused = 0
  for i in range(len(good)):
    damaged = bytes([good[i] ^ (1 << i % 8)])
    path.write_bytes(good[:i] + damaged + good[i + 1 :])
    try:
      assert run.read('a') == 1
    except tf.errors.OpError:
      refused += 1
  # Some bytes near the end of an index have no meaning.
  assert refused >= (0.6 if suffix == 'index' else 1) * len(good)
  for size in range(0, len(good), 5):
    path.write_bytes(good[:size])
    with pytest.raises(tf.errors.OpError):
      run.read('a')
  path.write_bytes(good)
  assert run.read('a') == 1


def test_a_half_written_state_is_as_never_written(tmp_path):
  run = storage_runs.Run(tmp_path).round({'a': 1, 'b': 5})
  run.write('a', 2)
  half = pathlib.Path(storage_runs.state_files(tmp_path)[-1])
  half.unlink()
  for suffix in ('.index.tempstate1', '.data-00000-of-00001.tempstate1'):
    half.with_suffix(suffix).write_bytes(b'half')
  assert (run.read('a'), run.read('b')) == (1, 5)
  after = run.round({'a': 3})
  assert (after.read('a'), after.read('b')) == (3, 5)


def test_a_state_is_a_checkpoint_that_tensorflow_reads(tmp_path):
  storage_runs.Run(tmp_path).round({'Gerät': 5})
  path = storage_runs.state_files(tmp_path)[0][: -len('.index')]
  name = re.fullmatch(r'000000001-(\d{19})', os.path.basename(path))
  reader = tf.train.load_checkpoint(path)
  assert reader.get_variable_to_shape_map() == {
    'client_id': [],
    'token': [],
    'state/0': [3],
    'state/1': [2, 2],
  }
  assert reader.get_tensor('client_id').decode() == 'Gerät'
  assert reader.get_tensor('token') == int(name[1])
  np.testing.assert_array_equal(
    reader.get_tensor('state/1'), -5 * np.ones((2, 2))
  )


# The folder.


@pytest.mark.parametrize('folder', ['', 'a*b', 'a?', 'a[1]', 'a\\b'])
def test_a_path_with_a_wildcard_is_refused(folder):
  with pytest.raises(storage_lib.ClientStorageError, match='path without'):
    storage_lib.ClientStorage(folder)


@pytest.mark.parametrize('name', ['with space', 'new\nline', 'Gerät', '%s{}'])
def test_any_other_path_is_a_folder(tmp_path, name):
  run = (
    storage_runs.Run(tmp_path / name).round({'a': 1}).round({'a': 2, 'b': 3})
  )
  assert (run.read('a'), run.read('b')) == (2, 3)


def test_a_folder_that_cannot_be_used_is_refused_when_the_process_is_built(
  tmp_path,
):
  file = tmp_path / 'file'
  file.write_text('mine')
  for folder in (file, file / 'storage', '/proc/storage'):
    with pytest.raises(storage_lib.ClientStorageError, match=str(folder)):
      storage_runs.build(folder)
  assert file.read_text() == 'mine'


def test_a_new_folder_is_for_its_user_only(tmp_path):
  storage_runs.build(tmp_path / 'new')
  mode = stat.S_IMODE((tmp_path / 'new').stat().st_mode)
  assert mode == 0o700


def test_the_states_of_clients_are_for_their_user_only(runtime, tmp_path):
  process = storage_runs.build(tmp_path / 'new')
  process.next(process.initialize(), storage_runs.clients(0, 1))
  paths = list((tmp_path / 'new').rglob('*'))
  assert any('.data-' in path.name for path in paths)
  for path in paths:
    assert not path.stat().st_mode & 0o077, path


def test_a_write_that_fails_is_an_error_and_works_later(tmp_path):
  run = storage_runs.Run(tmp_path).round({'a': 1})
  os.rename(run.folder / 'clients', tmp_path / 'away')
  (run.folder / 'clients').write_text('in the way')
  with pytest.raises(tf.errors.OpError):
    run.storage.write(run.lineage, tf.constant('a'), storage_runs.INITIAL)
  (run.folder / 'clients').unlink()
  os.rename(tmp_path / 'away', run.folder / 'clients')
  assert run.read('a') == 1
  assert run.round({'a': 2}).read('a') == 2


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
  run = storage_runs.Run(small_disk / 'storage').round({'a': 1})
  fill = small_disk / 'fill'
  with pytest.raises(OSError), fill.open('wb', buffering=0) as file:
    while True:
      file.write(bytes(1024))
  with pytest.raises(tf.errors.OpError):
    run.write('a', 2)
  assert run.read('a') == 1
  fill.unlink()
  assert run.round({'a': 2}).read('a') == 2


# Rounds of a process, in a worker.


def play(process, state, *rounds):
  """The state after rounds of these participants."""
  for participants in rounds:
    state = process.next(state, storage_runs.clients(*participants)).state
  return state


@pytest.mark.usefixtures('runtime')
def test_a_second_run_of_a_process_is_a_run_of_its_own(tmp_path):
  process = storage_runs.build(tmp_path)
  first = play(process, process.initialize(), [0, 1, 2], [1, 2])
  before = small_models.snapshot(tmp_path)
  second = play(process, process.initialize(), [1, 3], [0, 1])
  storage_runs.assert_is_after(second, [1, 3], [0, 1])
  assert before.items() <= small_models.snapshot(tmp_path).items()
  first = play(process, first, [0, 3])
  storage_runs.assert_is_after(first, [0, 1, 2], [1, 2], [0, 3])


@pytest.mark.usefixtures('runtime')
def test_two_runs_take_turns_in_a_folder(tmp_path):
  processes = [storage_runs.build(tmp_path) for _ in range(2)]
  states = [process.initialize() for process in processes]
  rounds = ([[0, 1], [1, 2], [0, 2]], [[1, 4], [0, 1], [1, 2, 4]])
  for t in range(3):
    for i in range(2):
      states[i] = play(processes[i], states[i], rounds[i][t])
  for state, own in zip(states, rounds, strict=True):
    storage_runs.assert_is_after(state, *own)


@pytest.mark.usefixtures('runtime')
def test_branches_of_a_run_take_turns(tmp_path):
  process = storage_runs.build(tmp_path)
  root = [[0, 1], [1, 2]]
  state = play(process, process.initialize(), *root)
  # The same participants, others, and nobody.
  branches = [[[0, 1]], [[0, 1]], [[1, 3, 4]], [[]], [[2]]]
  states = [play(process, state, *branch) for branch in branches]
  for participants in ([1, 2], [0, 1, 3], [2, 4]):
    for i, branch in enumerate(branches):
      branch.append(participants)
      states[i] = play(process, states[i], participants)
  for state, branch in zip(states, branches, strict=True):
    storage_runs.assert_is_after(state, *root, *branch)


@pytest.mark.usefixtures('runtime')
@pytest.mark.parametrize('number', [2, 4])
def test_a_client_that_takes_part_twice_is_named(tmp_path, number):
  process = storage_runs.build(tmp_path)
  state = play(process, process.initialize(), [0, 1, 3])
  for _ in range(2):
    with pytest.raises(Exception, match='take part once.*client 3'):
      play(process, state, [0, *[3] * number, 1])
  state = play(process, state, [0, 3, 1], [3, 4])
  storage_runs.assert_is_after(state, [0, 1, 3], [0, 3, 1], [3, 4])


@pytest.mark.usefixtures('runtime')
def test_a_client_twice_of_which_one_is_left_out_counts_once(tmp_path):
  process = storage_runs.build(tmp_path)
  participants = [*storage_runs.clients(0, 3), storage_runs.without_data(3)]
  state, _ = process.next(process.initialize(), participants)
  storage_runs.assert_is_after(play(process, state, [3]), [0, 3], [3])


@pytest.mark.usefixtures('runtime')
def test_more_clients_than_the_population_has_are_an_error(tmp_path):
  process = storage_runs.build(tmp_path)
  state = play(process, process.initialize(), [0, 1], [2, 3])
  for participants in ([4, 5], [0, 4, 6]):
    with pytest.raises(Exception, match='num_clients=5 is too small.*6'):
      play(process, state, participants)
  state = play(process, state, [4], [0, 3])
  storage_runs.assert_is_after(state, [0, 1], [2, 3], [4], [0, 3])


@pytest.mark.usefixtures('runtime')
def test_a_round_after_a_write_that_failed_is_exact(tmp_path):
  process = storage_runs.build(tmp_path)
  state = play(process, process.initialize(), [0, 1])
  (run,) = tmp_path.iterdir()
  os.rename(run / 'clients', tmp_path / 'away')
  (run / 'clients').write_text('in the way')
  with pytest.raises(Exception, match='clients'):
    play(process, state, [1, 2])
  (run / 'clients').unlink()
  os.rename(tmp_path / 'away', run / 'clients')
  storage_runs.assert_is_after(play(process, state, [1, 2]), [0, 1], [1, 2])


@pytest.mark.usefixtures('runtime')
def test_rounds_in_parts_are_exact(tmp_path, monkeypatch):
  process = storage_runs.build(tmp_path)
  rounds = [[0, 1, 2, 3, 4], [4, 2, 0], [1, 2, 3, 4]]
  with runtime_lib.local_context(max_concurrency=1):
    monkeypatch.setattr(contexts, '_CLIENTS_IN_MEMORY', 2)
    state = process.initialize()
    for t, participants in enumerate(rounds, start=1):
      with pytest.raises(Exception, match='take part once.*client 2'):
        play(process, state, [2, 0, 1, 2])
      state = play(process, state, participants)
      storage_runs.assert_is_after(state, *rounds[:t])


@pytest.mark.usefixtures('runtime')
def test_a_map_reduce_form_is_exact(tmp_path):
  """Its parts are called one by one, as a platform would."""
  process = storage_runs.build(tmp_path)
  form = tff.backends.mapreduce.get_map_reduce_form_for_computation(
    process.next
  )
  state, rounds = process.initialize(), [[0, 1, 2], [1, 2], [0, 3, 1]]
  for t, participants in enumerate(rounds, start=1):
    # Two attempts, of which the second one counts.
    for attempt in ([1, 4], participants):
      sent, total = form.prepare(state), form.zero()
      for client in storage_runs.clients(*attempt):
        update, *_ = form.work(client, sent)
        total = form.accumulate(total, update)
      after = form.update(state, (form.report(total), (), (), ()))['state']
    state = after
    assert len(storage_runs.state_files(tmp_path)) == 2 * t + sum(
      map(len, rounds[:t])
    )
    storage_runs.assert_equals(
      state['global_model_weights']['trainable'][0],
      state['finalizer']['means'][0][0],
      *rounds[:t],
    )
