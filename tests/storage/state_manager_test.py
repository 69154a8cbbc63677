import asyncio
import os
import pathlib
import shutil

import numpy as np
import programs
import pytest
import small_models
import storage_runs
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.learning.programs import training_program_logic

import tff_debias
from tff_debias import storage as storage_lib

pytestmark = pytest.mark.usefixtures('runtime')

# From round 1 on.
ROUNDS = [[0, 1], [1, 2], [0, 3], [2, 4], [1, 3], [0, 4], [2, 3]]


def make(folder, **options):
  """A new process and its manager, as a program that starts has them."""
  storage = storage_lib.ClientStorage(folder / 'clients')
  manager = storage_lib.StorageStateManager(
    tff.program.FileProgramStateManager(folder / 'state', **options), storage
  )
  return storage_runs.build(None, storage=storage), manager


def train(process, manager, num_rounds, rounds_per_saving=1):
  """By `tff.simulation.run_training_process`."""
  asyncio.set_event_loop(asyncio.new_event_loop())
  return tff.simulation.run_training_process(
    process,
    lambda round_num: storage_runs.clients(*ROUNDS[round_num - 1]),
    total_rounds=num_rounds,
    program_state_manager=manager,
    rounds_per_saving_program_state=rounds_per_saving,
  )


def data_source(process):
  """Gives the participants of `ROUNDS`."""
  return programs.data_source(
    [storage_runs.clients(*participants) for participants in ROUNDS],
    process.next.type_signature.parameter[1],
  )


def train_model(process, manager, num_rounds, should_discard_round=None):
  """By `tff.learning.programs.train_model`."""
  return programs.train_model(
    process,
    data_source(process),
    manager,
    num_rounds,
    should_discard_round=should_discard_round,
  )


def num_states(folder):
  """How many states each client has on the disk."""
  return [
    sum(name.endswith('.index') for name in names)
    for _, _, names in os.walk(folder)
    if 'client_id' in names
  ]


@pytest.mark.parametrize(
  'options',
  [{}, {'keep_total': 2, 'keep_first': False}, {'keep_total': 1}],
  ids=str,
)
def test_a_resumed_run_is_as_never_stopped(tmp_path, options):
  process, manager = make(tmp_path, **options)
  state = train(process, manager, 4, rounds_per_saving=2)
  storage_runs.assert_is_after(state, *ROUNDS[:4])
  # What follows is never saved: two rounds of others, then a kill.
  for participants in ([0, 4], [3, 4, 1]):
    clients = storage_runs.clients(*participants)
    state = process.next(state, clients).state
  state = train(*make(tmp_path, **options), 7, rounds_per_saving=2)
  storage_runs.assert_is_after(state, *ROUNDS)
  if not options.get('keep_first', True):
    # Two checkpoints are kept at most, and round 7 may be newer.
    assert max(num_states(tmp_path / 'clients')) <= 3
    assert sum(num_states(tmp_path / 'clients')) < sum(map(len, ROUNDS))
  # The states of clients go on from there.
  process, manager = make(tmp_path, **options)
  state = process.next(state, storage_runs.clients(0, 1, 2, 3, 4)).state
  state = process.next(state, storage_runs.clients(1, 3)).state
  storage_runs.assert_is_after(state, *ROUNDS, [0, 1, 2, 3, 4], [1, 3])


def test_train_model_of_tff_resumes_and_discards(tmp_path):
  seen = []

  def discard(output):
    seen.append(int(output.state.client_work['round']))
    return seen.count(seen[-1]) == 1 and seen[-1] in (2, 5)

  train_model(*make(tmp_path, keep_total=2), 3, discard)
  # A round that is not saved, and a kill.
  process, manager = make(tmp_path, keep_total=2)
  structure = training_program_logic.ProgramState(
    process.initialize(), 0, 0, data_source(process).iterator()
  )
  loaded, _ = asyncio.run(manager.load_latest(structure))
  process.next(loaded.state, storage_runs.clients(0, 1, 2, 3, 4))
  state = train_model(*make(tmp_path, keep_total=2), 7, discard)
  assert seen == [1, 2, 2, 3, 4, 5, 5, 6, 7]
  storage_runs.assert_is_after(state, *ROUNDS)
  assert max(num_states(tmp_path / 'clients')) <= 3


def test_an_older_checkpoint_can_be_gone_on_from(tmp_path):
  process, manager = make(tmp_path, keep_total=3)
  train(process, manager, 5)
  process, manager = make(tmp_path, keep_total=3)
  state = asyncio.run(manager.load(4, process.initialize()))
  storage_runs.assert_is_after(state, *ROUNDS[:4])
  state = process.next(state, storage_runs.clients(0, 2, 3)).state
  state = process.next(state, storage_runs.clients(1, 2, 3)).state
  storage_runs.assert_is_after(state, *ROUNDS[:4], [0, 2, 3], [1, 2, 3])


def remove_a_file(old, new, folder):
  del old, folder
  new[0].unlink()


def remove_the_other_file(old, new, folder):
  del old, folder
  new[1].unlink()


def remove_a_folder(old, new, folder):
  del old, new
  shutil.rmtree(folder)


def go_back_to_the_older_files(old, new, folder):
  del old, folder
  for path in new:
    path.unlink()


def overwrite_with_the_older_state(old, new, folder):
  del folder
  for source, target in zip(old, new, strict=True):
    shutil.copy(source, target)


@pytest.mark.parametrize(
  'damage',
  [
    remove_a_file,
    remove_the_other_file,
    remove_a_folder,
    go_back_to_the_older_files,
    overwrite_with_the_older_state,
  ],
)
def test_lost_client_states_end_a_resumed_run_before_it_trains(
  tmp_path, damage
):
  process, manager = make(tmp_path, keep_total=3)
  train(process, manager, 3)
  folder = storage_runs.client_folder(tmp_path, 'client 0')
  old, new = (
    sorted(pathlib.Path(folder).glob(f'00000000{i}*')) for i in (1, 3)
  )
  assert len(old) == len(new) == 2
  damage(old, new, folder)
  before = small_models.snapshot(tmp_path)
  message = rf'(?s){tmp_path}/clients/.* copy.* older checkpoint.* new run'
  with pytest.raises(storage_lib.ClientStorageError, match=message):
    train(process, manager, 4)
  with pytest.raises(storage_lib.ClientStorageError, match=message):
    asyncio.run(manager.load(3, process.initialize()))
  assert small_models.snapshot(tmp_path) == before
  if damage is not remove_a_folder:
    # The older checkpoint does not need what is lost.
    state = asyncio.run(manager.load(2, process.initialize()))
    state = process.next(state, storage_runs.clients(0, 1)).state
    storage_runs.assert_is_after(state, *ROUNDS[:2], [0, 1])


def test_states_are_on_the_disk_before_their_checkpoint(tmp_path, monkeypatch):
  events, fsync = [], os.fsync

  def record(descriptor):
    events.append(os.path.realpath(f'/proc/self/fd/{descriptor}'))
    return fsync(descriptor)

  class Manager(tff.program.FileProgramStateManager):
    async def save(self, program_state, version):
      events.append('save')
      await super().save(program_state, version)

  process, _ = make(tmp_path)
  manager = storage_lib.StorageStateManager(
    Manager(tmp_path / 'state'), storage_lib.ClientStorage(tmp_path / 'clients')
  )
  state = process.initialize()
  monkeypatch.setattr(os, 'fsync', record)
  for participants in ROUNDS[:3]:
    events.clear()
    before = small_models.snapshot(tmp_path / 'clients')
    state = process.next(state, storage_runs.clients(*participants)).state
    after = small_models.snapshot(tmp_path / 'clients')
    asyncio.run(manager.save(state, int(state.client_work['round'])))
    synced = set(events[: events.index('save')])
    # An entry of the journal is empty: its folder is all that it is.
    new = {
      os.path.join(tmp_path, 'clients', path)
      for path, content in after.items()
      if path not in before and (content is None or path.endswith('client_id'))
    }
    written = {
      str(path)
      for client in participants
      for path in pathlib.Path(
        storage_runs.client_folder(tmp_path, f'client {client}')
      ).glob(f'{int(state.client_work["round"]):09d}-*')
    }
    assert len(written) == 2 * len(participants)
    assert new | written | {os.path.dirname(path) for path in new} <= synced | {
      str(tmp_path)
    }


def test_a_method_without_states_is_saved_too(tmp_path):
  process = tff_debias.build_learning_process(
    small_models.linear_model(),
    tff_debias.NoPersonalization(),
    tff_debias.NoCorrection(),
  )
  _, manager = make(tmp_path)
  state = train(process, manager, 2)
  _, manager = make(tmp_path)
  loaded, version = asyncio.run(manager.load_latest(process.initialize()))
  assert version == 2
  for one, other in zip(
    tf.nest.flatten(loaded), tf.nest.flatten(state), strict=True
  ):
    np.testing.assert_array_equal(one, other)


def test_saves_do_not_overlap_also_in_a_second_loop(tmp_path):
  steps = []

  class SlowManager(tff.program.FileProgramStateManager):
    async def save(self, program_state, version):
      steps.append(version)
      await asyncio.sleep(0.05)
      await super().save(program_state, version)
      steps.append(version)

  process, _ = make(tmp_path)
  manager = storage_lib.StorageStateManager(
    SlowManager(tmp_path / 'state', keep_total=1, keep_first=False),
    storage_lib.ClientStorage(tmp_path / 'clients'),
  )
  state = process.initialize()

  async def save(*versions):
    await asyncio.gather(*(manager.save(state, v) for v in versions))

  asyncio.run(save(1, 2, 3))
  asyncio.run(save(4, 5))
  assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
  assert asyncio.run(manager.get_versions()) == [5]


def test_what_the_manager_inside_has_is_had(tmp_path):
  process, manager = make(tmp_path)
  assert asyncio.run(manager.load_latest(process.initialize())) == (None, 0)
  state = train(process, manager, 2)
  assert asyncio.run(manager.get_versions()) == [0, 1, 2]
  asyncio.run(manager.remove_all())
  assert not asyncio.run(manager.get_versions())
  # Only checkpoints are removed.
  state = process.next(state, storage_runs.clients(*ROUNDS[2])).state
  storage_runs.assert_is_after(state, *ROUNDS[:3])
