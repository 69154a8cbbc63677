import os
import threading

import pytest
import small_models
import storage_runs
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import storage as storage_lib

HOSTILE_IDS = [
  *(b'', b' ', b'.', b'..', b'../x', b'../../../../tmp/x', b'/etc/passwd'),
  *(b'*', b'?', b'[ab]', b'\\', b'-', b'=', b'%s', b'new\nline', b"it's"),
  *(b'nul', b'nul\0', b'nul\0byte', b'\0', b'Alice', b'alice', b'A', b'a'),
  *('Gerät ß 中🎈'.encode(), b'Ger\xe4t', b'\xff\xfe', bytes(range(81, 256))),
  *(b'x' * 175, 'é'.encode() * 87),
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
  nobody = before.round({})
  for run, values in (
    (before, (1, 2)),
    (first, (10, 2)),
    (again, (11, 12)),
    (other, (1, 22)),
    (nobody, (1, 2)),
  ):
    assert (run.read('a'), run.read('b')) == values
  assert first.round({'b': 3}).read('a') == 10
  assert other.round({'a': 4}).read('b') == 22
  assert nobody.round({'b': 4}).read('a') == 1


def test_a_late_writer_of_a_cancelled_attempt_is_never_read(tmp_path):
  run = storage_runs.Run(tmp_path).round({'a': 1})
  cancelled, token = storage_lib.new_token(), storage_lib.new_token()
  run.write('a', -1, cancelled)
  reports = [run.write('a', 2, token)]
  run.write('b', -2, cancelled)
  reports.append(run.write('b', 3, token))
  after = run.finish(reports)
  run.write('b', -3, cancelled)
  assert (after.read('a'), after.read('b')) == (2, 3)


@pytest.mark.parametrize('clock', ['forwards', 'backwards', 'stands still'])
def test_attempts_at_once_are_all_right(tmp_path, monkeypatch, clock):
  timestamp = tf.timestamp
  now = {
    'forwards': timestamp,
    'backwards': lambda: 4e9 - timestamp(),
    'stands still': lambda: tf.constant(2e9, tf.float64),
  }[clock]
  monkeypatch.setattr(tf, 'timestamp', now)
  run, after = storage_runs.Run(tmp_path).round({'a': 1, 'b': 1}), {}

  def attempt(i):
    after[i] = run.round({'a': 100 + i, 'b': 200 + i})

  threads = [threading.Thread(target=attempt, args=[i]) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for i in range(8):
    assert (after[i].read('a'), after[i].read('b')) == (100 + i, 200 + i)


def test_the_parts_of_a_round_have_a_token_each(tmp_path):
  # As in a context with several workers.
  run = storage_runs.Run(tmp_path).round({'a': 1})
  failed = storage_lib.new_token()
  run.write('a', -1, failed)
  tokens = [storage_lib.new_token() for _ in range(3)]
  values = [('a', 2, tokens[0]), ('b', 3, tokens[2]), ('c', 4, tokens[1])]
  after = run.finish([run.write(*value) for value in values])
  run.write('c', -2, failed)
  run.write('c', -3, storage_lib.new_token())
  assert [after.read(c) for c in 'abc'] == [2, 3, 4]
  assert after.round({'a': 9}).read('c') == 4
  tokens = [storage_lib.new_token() for _ in range(2)]
  values = [('a', 2, tokens[0]), ('b', 3, tokens[1]), ('a', 4, tokens[1])]
  with pytest.raises(tf.errors.InvalidArgumentError, match='(?s)did more.*a'):
    run.finish([run.write(*value) for value in values])


def test_two_runs_do_not_see_each_other(tmp_path):
  tf.keras.utils.set_random_seed(1)
  one = storage_runs.Run(tmp_path).round({'a': 1})
  # As in a program with a seed, which is started twice.
  tf.keras.utils.set_random_seed(1)
  two = storage_runs.Run(tmp_path)
  assert two.read('a') == 0
  two = two.round({'a': 2})
  assert (one.read('a'), two.read('a')) == (1, 2)
  assert len(os.listdir(tmp_path)) == 2


def test_hostile_ids_stay_inside_and_apart(tmp_path):
  run = storage_runs.Run(tmp_path / 'inner' / 'Gerät\n%s{}')
  values = {client_id: i for i, client_id in enumerate(HOSTILE_IDS, start=1)}
  run = run.round(values)
  assert {client_id: run.read(client_id) for client_id in values} == values
  assert len(storage_runs.state_files(run.storage.folder)) == len(values)
  assert os.listdir(tmp_path) == ['inner']
  assert os.listdir(run.folder.parent) == [run.folder.name]
  assert sorted(os.listdir(run.folder)) == ['rounds', 'states']


def test_workers_must_see_the_same_folder(tmp_path):
  here, there = tmp_path / 'here', tmp_path / 'there'
  run, token = storage_runs.Run(here), storage_lib.new_token()
  other = storage_runs.Run(there, run.lineage)
  reports = [run.write('a', 1, token), other.write('b', 2, token)]
  with pytest.raises(tf.errors.InvalidArgumentError, match=f'{here} lacks'):
    run.finish(reports)


# The folder.


@pytest.mark.parametrize('folder', ['', 'a*b', 'a?', 'a[1]', 'a\\b'])
def test_a_path_with_a_wildcard_is_refused(folder):
  with pytest.raises(storage_lib.ClientStorageError, match='path without'):
    storage_lib.ClientStorage(folder)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
  file = tmp_path / 'file'
  file.write_text('mine')
  for folder in (file, file / 'storage', '/proc/storage'):
    with pytest.raises(OSError, match=str(folder)):
      storage_lib.ClientStorage(folder).make_folder()
  assert file.read_text() == 'mine'


# Rounds of a process.


def play(process, state, *rounds):
  """The state after rounds of these participants."""
  for participants in rounds:
    state = process.next(state, storage_runs.clients(*participants)).state
  return state


def test_branches_and_other_runs_take_turns_in_a_folder(process):
  root = [[0, 1], [1, 2]]
  state = play(process, process.initialize(), *root)
  # The same participants, others, and nobody.
  branches = [[[0, 1]], [[0, 1]], [[1, 3, 4]], [[]], [[2]]]
  states = [play(process, state, *branch) for branch in branches]
  other_rounds = [[1, 3]]
  other = play(process, process.initialize(), *other_rounds)
  for participants in ([1, 2], [0, 1, 3], [2, 4]):
    for i, branch in enumerate(branches):
      branch.append(participants)
      states[i] = play(process, states[i], participants)
    other_rounds.append(participants)
    other = play(process, other, participants)
  for state, branch in zip(states, branches, strict=True):
    storage_runs.assert_is_after(state, *root, *branch)
  storage_runs.assert_is_after(other, *other_rounds)


def test_attempts_at_once_in_threads(process):
  state = play(process, process.initialize(), [0, 1])
  context = tff.framework.get_context_stack().current
  plans, after = [[0, 1], [0, 1, 2], [3], [4, 0, 2, 1], [1], [2, 0]], {}

  def attempt(i):
    with tff.framework.get_context_stack().install(context):
      after[i] = play(process, state, plans[i])

  threads = [
    threading.Thread(target=attempt, args=[i]) for i in range(len(plans))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for i, plan in enumerate(plans):
    storage_runs.assert_is_after(after[i], [0, 1], plan)
    storage_runs.assert_is_after(
      play(process, after[i], [0, 2]), [0, 1], plan, [0, 2]
    )


def test_a_client_that_takes_part_twice_is_named(process):
  state = play(process, process.initialize(), [0, 1, 3])
  for number in (2, 4):
    with pytest.raises(Exception, match='take part once.*client 3'):
      play(process, state, [0, *[3] * number, 1])
  state = play(process, state, [0, 3, 1], [3, 4])
  storage_runs.assert_is_after(state, [0, 1, 3], [0, 3, 1], [3, 4])


def test_a_client_twice_of_which_one_is_left_out_counts_once(process):
  participants = [*storage_runs.clients(0, 3), storage_runs.without_data(3)]
  state, _ = process.next(process.initialize(), participants)
  storage_runs.assert_is_after(play(process, state, [3]), [0, 3], [3])


def test_an_id_that_is_too_long_is_named(process):
  state = play(process, process.initialize(), [0])
  # Also of a client that has no data.
  for num_batches in (3, 0):
    client = small_models.client('x' * 176, *small_models.DATA[1], num_batches)
    with pytest.raises(Exception, match='at most 175 bytes.*xxxxx'):
      process.next(state, [client])


def test_more_clients_than_the_population_has_are_an_error(process):
  state = play(process, process.initialize(), [0, 1], [2, 3])
  for participants in ([4, 5], [0, 4, 6]):
    with pytest.raises(Exception, match='num_clients=5 is too small.*6'):
      play(process, state, participants)
  state = play(process, state, [4], [0, 3])
  storage_runs.assert_is_after(state, [0, 1], [2, 3], [4], [0, 3])


def test_a_round_after_a_write_that_failed_is_exact(shared, tmp_path):
  process, folder = shared
  state = play(process, process.initialize(), [0, 1])
  states = folder / str(state.client_work['lineage'].run) / 'states'
  os.rename(states, tmp_path / 'away')
  states.write_text('in the way')
  with pytest.raises(Exception, match='states'):
    play(process, state, [1, 2])
  states.unlink()
  os.rename(tmp_path / 'away', states)
  storage_runs.assert_is_after(play(process, state, [1, 2]), [0, 1], [1, 2])


def test_a_map_reduce_form_is_exact(process):
  """Its parts are called one by one, as a platform would."""
  form = tff.backends.mapreduce.get_map_reduce_form_for_computation(
    process.next
  )
  state, rounds = process.initialize(), [[0, 1, 2], [1, 2], [0, 3, 1]]
  for t, participants in enumerate(rounds, start=1):
    # Two attempts, of which the second one counts. It runs in two parts.
    for attempt in ([[1, 4]], [participants[:1], participants[1:]]):
      total = form.zero()
      for part in attempt:
        sent = form.prepare(state)
        for client in storage_runs.clients(*part):
          update, *_ = form.work(client, sent)
          total = form.accumulate(total, update)
      after = form.update(state, (form.report(total), (), (), ()))['state']
    state = after
    storage_runs.assert_equals(
      state['global_model_weights']['trainable'][0],
      state['finalizer']['mean_states'][0][0],
      *rounds[:t],
    )
