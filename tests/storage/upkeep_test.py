import os
import pathlib
import random
import shutil

import numpy as np
import pytest
import small_models
import storage_runs
import tensorflow as tf

from tff_debias import storage as storage_lib
from tff_debias.storage import upkeep


def saved(run):
  """The lineage as a checkpoint has it."""
  return storage_lib.Lineage(*(part.numpy() for part in run.lineage))


def prune(run, round_num):
  upkeep.prune(run.storage.folder, saved(run), round_num)


def rollback(run):
  upkeep.rollback(run.storage.folder, saved(run))


def check(run):
  upkeep.check(run.storage.folder, saved(run))


def rounds(run):
  """For each client id, the rounds of its states."""
  return {
    path.read_bytes().decode(): sorted(
      int(name.name[:9]) for name in path.parent.glob('*.index')
    )
    for path in run.folder.glob('clients/*/*/client_id')
  }


@pytest.mark.parametrize('seed', range(4))
def test_prune_and_rollback_against_a_dictionary(tmp_path, seed):
  """A random run with checkpoints, crashes and retries, and its model."""
  choose = random.Random(seed)
  clients, value = ['a', 'b', 'c', 'd', 'e'], 0
  # Of every round done: the run after it, and the values of all clients.
  history = [(storage_runs.Run(tmp_path), {})]
  checkpoint = 0
  for _ in range(25):
    run, values = history[-1]
    participants = choose.sample(clients, choose.choice([1, 1, 2, 2, 4]))
    new = {}
    for client in participants:
      value += 1
      new[client] = value
    if choose.random() < 0.2:
      # Dies in the middle, or fails, so that it is tried again.
      for client in participants[:-1]:
        run.write(client, -value)
      action = choose.choice(['crash', 'go on'])
    else:
      history.append((run.round(new), {**values, **new}))
      action = choose.choice(['go on', 'save', 'save', 'crash', 'retry'])
    if action == 'retry' and len(history) - 1 > checkpoint:
      history.pop()
    if action == 'save':
      done = len(history) - 1
      checkpoint = max(checkpoint, choose.randint(max(0, done - 3), done))
      prune(history[-1][0], checkpoint)
    if action == 'crash':
      del history[choose.randint(checkpoint, len(history) - 1) + 1 :]
      rollback(history[-1][0])
      done = len(history) - 1
      assert all(r <= done for found in rounds(run).values() for r in found)
    # All from the checkpoint on are right, not just the last one.
    for run, values in history[checkpoint:]:
      assert {client: run.read(client) for client in clients} == {
        client: values.get(client, 0) for client in clients
      }
      check(run)
  assert checkpoint > 5, 'The random run proves nothing.'
  # And what no checkpoint needs is gone.
  run, values = history[-1]
  rollback(run)
  prune(run, len(history) - 1)
  assert {client: len(found) for client, found in rounds(run).items()} == {
    client: int(client in values) for client in rounds(run)
  }
  assert list(run.folder.glob('journal/*')) == []


def test_an_empty_storage_stays_empty(tmp_path):
  run = storage_runs.Run(tmp_path)
  prune(run, 3)
  rollback(run)
  upkeep.sync(str(tmp_path), saved(run))
  assert list(tmp_path.iterdir()) == []


def test_prune_leaves_what_a_running_round_writes(tmp_path):
  # `tff.learning.programs.train_model` saves while the next round is running.
  run = storage_runs.Run(tmp_path).round({'a': 1}).round({'a': 2})
  run.write('a', 3)
  folder = pathlib.Path(storage_runs.client_folder(tmp_path, 'a'))
  writing = folder / f'000000003-{7:019d}.index.tempstate123'
  writing.write_bytes(b'half')
  # Also where a later checkpoint is saved before this one.
  for round_num in (2, 3):
    prune(run, round_num)
    assert rounds(run) == {'a': [2, 3]}
    assert writing.read_bytes() == b'half'


def test_prune_of_a_run_leaves_the_other(tmp_path):
  one, two = (storage_runs.Run(tmp_path).round({'a': i}) for i in (1, 2))
  one, two = one.round({'a': 3}), two.round({'a': 4})
  before = small_models.snapshot(two.folder)
  prune(one, 2)
  rollback(storage_runs.Run(tmp_path))
  assert rounds(one) == {'a': [2]}
  assert small_models.snapshot(two.folder) == before


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
  before = storage_runs.Run(tmp_path).round({'a': 1, 'b': 5})
  before.write('a', 2)
  half = pathlib.Path(storage_runs.state_files(tmp_path)[-1])
  half.unlink()
  for suffix in ('.index.tempstate1', '.data-00000-of-00001.tempstate1'):
    half.with_suffix(suffix).write_bytes(b'half')
  files = small_models.snapshot(tmp_path)
  rollback(before)
  assert before.read('a') == 1
  assert not list(half.parent.glob('000000002*'))
  # What a failed attempt left goes when its round is pruned.
  for path, content in files.items():
    if content is not None:
      (tmp_path / path).parent.mkdir(exist_ok=True)
      (tmp_path / path).write_bytes(content)
  after = before.round({'a': 3})
  prune(after, 2)
  left = sorted(path.name for path in half.parent.iterdir())
  assert [name[:9] for name in left] == ['000000002'] * 2 + ['client_id']
  assert after.read('a') == 3


def test_lost_states_are_named(tmp_path):
  run = storage_runs.Run(tmp_path).round({'a': 1, 'b': 2}).round({'a': 3})
  good = small_models.snapshot(tmp_path)
  folder = pathlib.Path(storage_runs.client_folder(tmp_path, 'a'))
  old, new = (sorted(folder.glob(f'00000000{i}*')) for i in (1, 2))

  def copy_older():
    for source, target in zip(old, new, strict=True):
      shutil.copy(source, target)

  def remove_newer():
    for path in new:
      path.unlink()

  def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])

  def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 4
    path.write_bytes(content)

  for damage in (
    *(path.unlink for path in new),
    remove_newer,
    copy_older,
    lambda: shutil.rmtree(folder),
    lambda: shutil.rmtree(run.folder / 'clients'),
    lambda: shutil.rmtree(run.folder),
    *(lambda path=path: truncate(path) for path in new),
    *(lambda path=path: flip_a_bit(path) for path in new),
    *(lambda path=path: path.write_bytes(b'') for path in new),
  ):
    damage()
    damaged = small_models.snapshot(tmp_path)
    for function in (check, rollback):
      with pytest.raises(
        storage_lib.ClientStorageError,
        match=rf'(?s){run.folder}.* from a copy.* older checkpoint.* new run',
      ):
        function(run)
    assert small_models.snapshot(tmp_path) == damaged
    shutil.rmtree(tmp_path)
    for path, content in good.items():
      if content is None:
        (tmp_path / path).mkdir(parents=True)
      else:
        (tmp_path / path).write_bytes(content)
    check(run)


def test_a_foreign_state_is_named(tmp_path):
  run = storage_runs.Run(tmp_path).round({'a': 1, 'b': 2})
  folder = pathlib.Path(storage_runs.client_folder(tmp_path, 'a'))
  shutil.copytree(folder, folder.parent / '1_2')
  with pytest.raises(storage_lib.ClientStorageError, match='3 are there'):
    check(run)


def links(folder):
  """All folders of a run, and the file that a round writes again."""
  (run,) = folder.iterdir()
  return [
    '.',
    'clients',
    'journal',
    *(
      os.path.relpath(path, run)
      for pattern in ('journal/*', 'clients/*', 'clients/*/*', '*/*/*/*_id')
      for path in run.glob(pattern)
    ),
  ]


def test_a_symbolic_link_is_refused_and_not_followed(tmp_path):
  run = storage_runs.Run(tmp_path / 'in')
  run = run.round({'a': 1}).round({'a': 2})
  after = run.round({'a': 3})
  names = links(tmp_path / 'in')
  assert len(names) == 9
  for name in names:
    path, outside = run.folder / name, tmp_path / 'outside'
    os.rename(path, outside)
    os.symlink(outside, path)
    before = small_models.snapshot(tmp_path)
    for function in (
      rollback,
      check,
      lambda run: prune(run, 2),
      lambda _: prune(after, 3),
      lambda run: upkeep.sync(run.storage.folder, saved(run)),
    ):
      with pytest.raises(
        storage_lib.ClientStorageError, match='is a symbolic link'
      ):
        function(run)
    assert small_models.snapshot(tmp_path) == before
    path.unlink()
    os.rename(outside, path)
  rollback(run)
  assert run.read('a') == 2


def test_hostile_names_are_left_alone(tmp_path):
  victim = tmp_path / 'victim'
  victim.mkdir()
  (victim / f'000000001-{1:019d}.index').write_bytes(b'mine')
  run = storage_runs.Run(tmp_path / 'in').round({'a': 1})
  after = run.round({'a': 2})
  for round_num in (1, 2):
    journal = run.folder / 'journal' / f'00000000{round_num}'
    for name in (
      '..-..-..-victim',
      f'{1:019d}-..-..',
      f'{1:019d}-..-1_1',
      f'{1:019d}-1-..',
      f'{1:019d}-1-1_1\n',
      f'{1:019d}-١-1_1',
      '.DS_Store',
    ):
      (journal / name).write_bytes(b'')
    (journal / '0-..').mkdir()
    (journal / '0-..' / 'victim').write_bytes(b'')
    (journal / 'link').symlink_to(victim)
  folder = pathlib.Path(storage_runs.client_folder(tmp_path, 'a'))
  for name in ('000000000-', '999999999-'):
    (folder / f'{name}{1:019d}.index').write_bytes(b'of no round')
  (folder / 'note').write_bytes(b'mine')
  (run.folder / 'journal' / 'note').write_bytes(b'mine')
  before = small_models.snapshot(victim)
  prune(after, 1)
  rollback(run)
  assert small_models.snapshot(victim) == before
  assert (folder / 'note').exists()
  assert (run.folder / 'journal' / 'note').exists()
  assert run.read('a') == 1
  assert np.isfinite(run.round({'a': 2}).read('a'))


def test_a_failed_write_does_not_stop_the_next_checkpoint(tmp_path):
  run = storage_runs.Run(tmp_path).round({'a': 1})
  os.rename(run.folder / 'clients', tmp_path / 'away')
  (run.folder / 'clients').write_text('in the way')
  with pytest.raises(tf.errors.OpError):
    run.storage.write(
      run.lineage, tf.constant('b'), [tf.zeros([3]), tf.zeros([2, 2])]
    )
  (run.folder / 'clients').unlink()
  os.rename(tmp_path / 'away', run.folder / 'clients')
  assert len(list(run.folder.glob('journal/000000002/*'))) == 1
  after = run.round({'a': 2})
  upkeep.sync(str(tmp_path), saved(after))
  prune(after, 2)
  assert rounds(after) == {'a': [2]}
