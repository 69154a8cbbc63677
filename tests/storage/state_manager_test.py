import asyncio
import random
import shutil

import programs
import pytest
import small_models
import storage_runs
import tensorflow_federated as tff
from tensorflow_federated.python.learning.programs import training_program_logic

import tff_debias
from tff_debias import storage as storage_lib
from tff_debias.storage import state_manager

# From round 1 on.
ROUNDS = [[0, 1], [1, 2], [0, 3], [2, 4], [1, 3], [0, 4], [2, 3]]


# States of clients without a process.


def kept_by_tff(versions, keep_total, keep_first, keep_every_k):
  """The versions that TFF's `FileProgramStateManager` keeps of sorted ones."""
  kept = [
    version
    for i, version in enumerate(versions)
    if version % keep_every_k == 0
    or i == len(versions) - 1
    or (keep_first and i == 0)
  ]
  if 0 < keep_total < len(kept):
    kept = [*kept[:keep_first], *kept[keep_first - keep_total :]]
  return kept


def note(run, version, versions):
  state_manager.note(run.storage.folder, run.saved, version, list(versions))


def prune(run, versions):
  state_manager.prune(run.storage.folder, run.saved, list(versions))


def check(run):
  state_manager.check(run.storage.folder, run.saved)


def files(run, kind):
  return [path for path in run.folder.glob(f'{kind}/**/*') if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(6))
def test_random_histories_against_a_dictionary(tmp_path, seed):
  """Rounds, retries, kills and checkpoints, and the same in a dictionary."""
  choose = random.Random(seed)
  # As TFF's manager takes them: keep_total, keep_first and keep_every_k.
  rule = [(3, 1, 1), (3, 0, 1), (1, 0, 1), (2, 1, 2), (0, 1, 3), (5, 1, 1)][
    seed
  ]
  rounds_per_checkpoint = [1, 3][seed % 2]
  version = [0, 1, 1001][seed % 3]
  clients, value = list('abcde'), 0
  run, values, checkpoints = storage_runs.Run(tmp_path), {}, {}

  def save(is_pruned=True):
    nonlocal checkpoints
    note(run, version, checkpoints)
    checkpoints[version] = (run, values)
    kept = kept_by_tff(sorted(checkpoints), *rule)
    checkpoints = {v: checkpoints[v] for v in kept}
    if is_pruned:
      prune(run, checkpoints)

  for step in range(25):
    participants = choose.sample(clients, choose.choice([0, 1, 1, 2, 2, 4]))
    new = {}
    for client in participants:
      value += 1
      new[client] = value
    if choose.random() < 0.3:
      # Dies in the middle, or fails, so that it is tried again.
      token = storage_lib.new_token()
      for client in choose.sample(clients, 3):
        run.write(client, -1 - step, token)
    if choose.random() < 0.1:
      # Is done, and not gone on from.
      run.round({client: -1 - step for client in clients[:3]})
    run, values = run.round(new), {**values, **new}
    if step % rounds_per_checkpoint == 0:
      action = choose.choice(['save'] * 7 + ['killed between'] * 2 + ['late'])
      if action == 'killed between':
        note(run, version, checkpoints)
      else:
        save(is_pruned=action == 'save')
        version += choose.choice([1, 1, 1, 5])
    if choose.random() < 0.15 and checkpoints:
      # Killed, and goes on from the last checkpoint.
      run, values = checkpoints[max(checkpoints)]
    # All are right that are kept, and not just the last one.
    for other, expected in [*checkpoints.values(), (run, values)]:
      assert {client: other.read(client) for client in clients} == {
        client: expected.get(client, 0) for client in clients
      }
      check(other)
  assert run.lineage.num_clients == 5, 'The random run proves nothing.'
  # And what no checkpoint needs is gone, also the leftovers of rounds that are
  # done again from now on.
  for _ in range(12):
    value, version = value + 1, version + 1
    values = dict.fromkeys(clients, value)
    run = run.round(values)
    save()
  needed = {
    (client, expected[client])
    for _, expected in checkpoints.values()
    for client in clients
    if client in expected
  }
  assert len(files(run, 'states')) == len(needed)
  assert len(files(run, 'rounds')) <= len(needed)


def test_what_a_running_round_writes_stays(tmp_path):
  # `tff.learning.programs.train_model` saves while the next round is running.
  run, token = storage_runs.Run(tmp_path).round({'a': 1}), None
  note(run, 1, [])
  token = storage_lib.new_token()
  reports = [run.write('a', 2, token)]
  prune(run, [1])
  after = run.finish(reports)
  assert (run.read('a'), after.read('a')) == (1, 2)


def test_a_branch_keeps_all_until_the_checkpoints_of_the_other_are_gone(
  tmp_path,
):
  runs = [storage_runs.Run(tmp_path)]
  for i in range(1, 6):
    runs.append(runs[-1].round({'a': i, 'b': 10 * i}))
    note(runs[-1], i, range(1, i))
  branch = runs[2].round({'a': 77})
  note(branch, 6, range(1, 6))
  prune(branch, range(1, 7))
  assert [run.read('a') for run in runs] == [0, 1, 2, 3, 4, 5]
  prune(branch, [2, 6])
  assert (runs[2].read('a'), runs[2].read('b')) == (2, 20)
  assert (branch.read('a'), branch.read('b')) == (77, 20)
  assert len(files(branch, 'states')) == 3 + 4


def test_nothing_is_removed_for_a_version_without_a_note(tmp_path):
  run = storage_runs.Run(tmp_path).round({'a': 1})
  note(run, 1, [])
  run = run.round({'a': 2})
  note(run, 2, [1])
  for versions in ([2, 99], []):
    prune(run, versions)
    assert len(files(run, 'states')) == 2
  prune(run, [2])
  assert len(files(run, 'states')) == 1


# The manager around TFF's.


@pytest.fixture
def make(shared, tmp_path):
  """Makes the manager of a process, of this or another kind and folder."""

  def make_manager(
    kind=tff.program.FileProgramStateManager, name='state', **options
  ):
    return storage_lib.StorageStateManager(
      kind(tmp_path / name, **options), storage_lib.ClientStorage(shared[1])
    )

  return make_manager


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


@pytest.fixture
def num_states(shared):
  """Counts the states on the disk for each client of a run."""

  def count(state):
    run = shared[1] / str(state.client_work['lineage'].run)
    return [len(list(path.iterdir())) for path in run.glob('states/*')]

  return count


@pytest.mark.parametrize(
  'options',
  [{}, {'keep_total': 2, 'keep_first': False}],
  ids=str,
)
def test_a_resumed_run_is_as_never_stopped(process, make, num_states, options):
  state = train(process, make(**options), 4, rounds_per_saving=2)
  storage_runs.assert_is_after(state, *ROUNDS[:4])
  # What follows is never saved: two rounds of others, then a kill.
  for participants in ([0, 4], [3, 4, 1]):
    clients = storage_runs.clients(*participants)
    state = process.next(state, clients).state
  state = train(process, make(**options), 7, rounds_per_saving=2)
  storage_runs.assert_is_after(state, *ROUNDS)
  if not options.get('keep_first', True):
    assert max(num_states(state)) <= 3
    assert sum(num_states(state)) < sum(map(len, ROUNDS))
  # The states of clients go on from there.
  state = process.next(state, storage_runs.clients(0, 1, 2, 3, 4)).state
  state = process.next(state, storage_runs.clients(1, 3)).state
  storage_runs.assert_is_after(state, *ROUNDS, [0, 1, 2, 3, 4], [1, 3])


@pytest.mark.slow
def test_train_model_of_tff_resumes_and_discards(process, make, num_states):
  seen = []

  def discard(output):
    seen.append(int(output.state.client_work['round']))
    return seen.count(seen[-1]) == 1 and seen[-1] in (2, 5)

  train_model(process, make(keep_total=2), 3, discard)
  # A round that is not saved, and a kill.
  structure = training_program_logic.ProgramState(
    process.initialize(), 0, 0, data_source(process).iterator()
  )
  loaded, _ = asyncio.run(make(keep_total=2).load_latest(structure))
  process.next(loaded.state, storage_runs.clients(0, 1, 2, 3, 4))
  state = train_model(process, make(keep_total=2), 7, discard)
  assert seen == [1, 2, 2, 3, 4, 5, 5, 6, 7]
  storage_runs.assert_is_after(state, *ROUNDS)
  assert max(num_states(state)) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(
  ('first_version', 'rounds_per_checkpoint', 'options'),
  [
    (1001, 1, {'keep_total': 2, 'keep_first': False}),
    (1, 3, {'keep_total': 2, 'keep_first': False}),
    (1, 1, {'keep_total': 3, 'keep_first': True}),
  ],
  ids=str,
)
def test_a_version_is_no_round(
  process, make, num_states, first_version, rounds_per_checkpoint, options
):
  manager = make(**options)
  state, plans, plan = process.initialize(), {}, []
  version = first_version
  for round_num, participants in enumerate(ROUNDS * 2, start=1):
    state = process.next(state, storage_runs.clients(*participants)).state
    plan = [*plan, participants]
    if round_num % rounds_per_checkpoint == 0:
      asyncio.run(manager.save(state, version))
      plans[version] = plan
      version += 1
  versions = asyncio.run(manager.get_versions())
  assert len(versions) == options['keep_total']
  # Each version needs five states at most. Of every third round, two rounds
  # come after the last version.
  assert sum(num_states(state)) <= 5 * len(versions) + 4
  for version in versions:
    state = asyncio.run(manager.load(version, process.initialize()))
    state = process.next(state, storage_runs.clients(0, 1, 2, 3, 4)).state
    storage_runs.assert_is_after(state, *plans[version], [0, 1, 2, 3, 4])


def test_a_kill_between_the_note_and_the_checkpoint(process, make, num_states):
  class KilledManager(tff.program.FileProgramStateManager):
    async def save(self, program_state, version):
      raise KeyboardInterrupt

  manager = make(keep_total=1, keep_first=False)
  killed = make(KilledManager)
  state = process.initialize()
  for version, participants in enumerate(ROUNDS, start=1):
    # The note of another attempt at this round and this version.
    other = process.next(state, storage_runs.clients(0, 4)).state
    with pytest.raises(KeyboardInterrupt):
      asyncio.run(killed.save(other, version))
    state = process.next(state, storage_runs.clients(*participants)).state
    asyncio.run(manager.save(state, version))
  state, version = asyncio.run(manager.load_latest(process.initialize()))
  assert version == len(ROUNDS)
  assert num_states(state) == [1] * 5
  state = process.next(state, storage_runs.clients(0, 1)).state
  storage_runs.assert_is_after(state, *ROUNDS, [0, 1])


def test_loading_removes_nothing_of_any_run(shared, make, tmp_path):
  process, folder = shared
  # Two runs with checkpoints of their own and the same storage.
  states, managers = [], [make(), make(name='other')]
  for manager in managers:
    state = process.initialize()
    for version, participants in enumerate(ROUNDS[:3]):
      state = process.next(state, storage_runs.clients(*participants)).state
      asyncio.run(manager.save(state, version))
    states.append(state)
  before = small_models.snapshot(folder), small_models.snapshot(tmp_path)
  for manager in managers:
    asyncio.run(manager.load(1, process.initialize()))
    asyncio.run(manager.load_latest(process.initialize()))
  after = small_models.snapshot(folder), small_models.snapshot(tmp_path)
  assert after == before
  for state in states:
    state = process.next(state, storage_runs.clients(0, 1, 2)).state
    storage_runs.assert_is_after(state, *ROUNDS[:3], [0, 1, 2])


def test_lost_client_states_end_a_resumed_run_before_it_trains(
  shared, make, tmp_path
):
  process, folder = shared
  manager = make(keep_total=3)
  state = train(process, manager, 3)
  run = str(state.client_work['lineage'].run)
  lost = {p.parent for p in storage_runs.state_files(folder, 'client 2')}
  shutil.rmtree(*(path for path in lost if run in path.parts))
  before = small_models.snapshot(folder)
  message = rf'{folder}/{run}.*round 3 needs .* 4 .* 3 are there'
  with pytest.raises(storage_lib.ClientStorageError, match=message):
    train(process, manager, 4)
  with pytest.raises(storage_lib.ClientStorageError, match=message):
    asyncio.run(manager.load(3, process.initialize()))
  assert small_models.snapshot(folder) == before
  # The first checkpoint does not need what is lost.
  asyncio.run(manager.load(0, process.initialize()))


def test_a_method_without_states_is_saved_too(runtime, make):
  process = small_models.linear_process(tff_debias.NoCorrection())
  state = process.initialize()
  asyncio.run(make().save(state, 2))
  loaded, version = asyncio.run(make().load_latest(state))
  assert version == 2
  small_models.assert_same(loaded, state)


def test_saves_do_not_overlap_also_in_a_second_loop(process, make):
  steps = []

  class SlowManager(tff.program.FileProgramStateManager):
    async def save(self, program_state, version):
      steps.append(version)
      await asyncio.sleep(0.05)
      await super().save(program_state, version)
      steps.append(version)

  manager = make(SlowManager, keep_total=1, keep_first=False)
  state = process.initialize()

  async def save(*versions):
    await asyncio.gather(*(manager.save(state, v) for v in versions))

  asyncio.run(save(1, 2, 3))
  asyncio.run(save(4, 5))
  assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
  assert asyncio.run(manager.get_versions()) == [5]


def test_the_manager_inside_says_which_versions_there_are(process, make):
  manager = make()
  # TFF's manager says None here.
  assert asyncio.run(manager.get_versions()) is None
  assert asyncio.run(manager.load_latest(process.initialize())) == (None, 0)
  state = train(process, manager, 2)
  assert asyncio.run(manager.get_versions()) == [0, 1, 2]
  asyncio.run(manager.remove_all())
  assert asyncio.run(manager.get_versions()) is None
  # Only checkpoints are removed.
  state = process.next(state, storage_runs.clients(*ROUNDS[2])).state
  asyncio.run(manager.save(state, 3))
  storage_runs.assert_is_after(state, *ROUNDS[:3])


def test_a_manager_that_knows_no_versions_loses_nothing(process, make):
  class NoVersions(tff.program.FileProgramStateManager):
    async def get_versions(self):
      return None

  manager = make(NoVersions, keep_total=0)
  state = process.initialize()
  for version, participants in enumerate(ROUNDS[:4], start=1):
    state = process.next(state, storage_runs.clients(*participants)).state
    asyncio.run(manager.save(state, version))
  state = asyncio.run(manager.load(2, process.initialize()))
  state = process.next(state, storage_runs.clients(0, 1)).state
  storage_runs.assert_is_after(state, *ROUNDS[:2], [0, 1])
