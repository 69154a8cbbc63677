"""TFF's own loops, programs and forms around one process: so it is one file.

Each is as one writes it. All train on the same participants, and end as
`process.next` in a loop does.
"""

import asyncio
import collections
import csv
import datetime
import os
import signal
import subprocess
import sys
import types

import numpy as np
import programs
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

import tff_debias

IDS = ['a', 'b', 'c', 'Łukasz']
MAML = tff_debias.Maml(num_steps=1, learning_rate=0.1)
PAIRS = [[0, 1], [2, 0], [1, 3], [3, 2], [0, 3]]
ROUNDS = [[IDS[i] for i in pair] for pair in PAIRS]
CLIENT_DATA = small_models.linear_client_data(IDS).preprocess(
  lambda data: data.batch(4).repeat(2)
)


def client(client_id):
  return collections.OrderedDict(
    client_id=client_id,
    data=CLIENT_DATA.create_tf_dataset_for_client(client_id),
  )


def build(folder):
  """A process, and the same of ids."""
  process = tff_debias.build_pfl_dyn(
    small_models.linear_model(),
    MAML,
    alpha=0.5,
    num_clients=4,
    storage=tff_debias.ClientStorage(folder),
    learning_rate=0.05,
  )
  return process, tff_debias.compose_with_client_data(process, CLIENT_DATA)


@pytest.fixture(scope='module')
def processes(runtime, tmp_path_factory):
  """A process, the same of ids, and the folder in which all runs keep states.

  Every test begins a run of its own.
  """
  folder = tmp_path_factory.mktemp('clients')
  return *build(folder), folder


@pytest.fixture(scope='module')
def fed_avg(runtime):
  """A process whose clients are data sets."""
  return tff_debias.build_fed_avg(
    small_models.linear_model(), learning_rate=0.05
  )


@pytest.fixture(scope='module')
def expected(processes):
  process, *_ = processes
  state = process.initialize()
  for ids in ROUNDS:
    state = process.next(state, [client(i) for i in ids]).state
  return process.get_model_weights(state)


def assert_same(weights, expected, atol=0):
  for value, other in zip(weights.trainable, expected.trainable, strict=True):
    np.testing.assert_allclose(value, other, rtol=1e-6, atol=atol)
    assert np.abs(other).max() > 0.1


@pytest.fixture
def manager(processes, tmp_path):
  return tff_debias.StorageStateManager(
    tff.program.FileProgramStateManager(tmp_path / 'state'),
    tff_debias.ClientStorage(processes[2]),
  )


def native_program_context():
  """TFF's own, around the context of the tests."""
  local = tff.framework.get_context_stack().current
  return tff.program.NativeFederatedContext(
    tff_debias.runtime.AsyncLocalContext(local)
  )


SOURCE = programs.data_source(ROUNDS, tff.FederatedType(np.str_, tff.CLIENTS))


@pytest.mark.slow
def test_a_trainer_with_evaluation_and_csv(processes, expected, tmp_path):
  _, process, _ = processes
  model = small_models.linear_model()
  evaluate = tff_debias.compose_evaluation_with_client_data(
    tff_debias.build_personalized_evaluation(model, MAML),
    *[small_models.linear_client_data(IDS).preprocess(lambda d: d.batch(4))]
    * 2,
  )
  asyncio.set_event_loop(asyncio.new_event_loop())
  state = tff.simulation.run_training_process(
    process,
    training_selection_fn=lambda round_num: ROUNDS[round_num - 1],
    total_rounds=len(ROUNDS),
    evaluation_fn=lambda state, ids: evaluate(
      process.get_model_weights(state), ids
    ),
    evaluation_selection_fn=lambda round_num: IDS,
    rounds_per_evaluation=5,
    metrics_managers=[
      tff.program.CSVFileReleaseManager(
        tmp_path / 'metrics.csv', key_fieldname='round'
      )
    ],
  )
  assert_same(process.get_model_weights(state), expected)
  rows = list(csv.DictReader((tmp_path / 'metrics.csv').open()))
  assert [row['round'] for row in rows][-5:] == ['1', '2', '3', '4', '5']
  last = evaluate(process.get_model_weights(state), IDS)
  assert float(rows[-1]['evaluation/by_client/loss/mean']) == pytest.approx(
    last['by_client']['loss']['mean']
  )


@pytest.mark.slow
@pytest.mark.parametrize('is_own', [False, True])
def test_train_model_goes_on_from_a_checkpoint(
  processes, expected, manager, is_own
):
  _, process, _ = processes
  context = native_program_context()
  for num_rounds in 3, len(ROUNDS):
    state = programs.train_model(
      process, SOURCE, manager, num_rounds, None if is_own else context
    )
  assert_same(process.get_model_weights(state), expected)


def train_until_killed(folder, clients):
  """Trains in this process, which dies when it has the second checkpoint.

  Rounds of a few milliseconds are ahead of their checkpoints then.
  """

  class Manager(tff_debias.StorageStateManager):
    async def save(self, program_state, version):
      await super().save(program_state, version)
      if version == 2:
        os.kill(os.getpid(), signal.SIGKILL)

  manager = Manager(
    tff.program.FileProgramStateManager(folder),
    tff_debias.ClientStorage(clients),
  )
  _, process = build(clients)
  programs.train_model(process, SOURCE, manager, len(ROUNDS))


@pytest.mark.slow
def test_train_model_that_is_killed_goes_on(
  processes, expected, manager, tmp_path
):
  folders = [str(tmp_path / 'state'), str(processes[2])]
  killed = subprocess.run(
    [
      *(sys.executable, '-c'),
      f'import pipelines_test; pipelines_test.train_until_killed(*{folders})',
    ],
    cwd=os.path.dirname(__file__),
    capture_output=True,
    text=True,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert max(asyncio.run(manager.get_versions())) == 2
  _, process, _ = processes
  state = programs.train_model(process, SOURCE, manager, len(ROUNDS))
  assert_same(process.get_model_weights(state), expected)


@pytest.mark.slow
def test_train_model_with_data_sets_in_tffs_own_program_context(
  fed_avg, tmp_path
):
  rounds = [[client(i)['data'] for i in ids] for ids in ROUNDS]
  state = programs.train_model(
    fed_avg,
    programs.data_source(rounds, fed_avg.next.type_signature.parameter[1]),
    tff_debias.StorageStateManager(
      tff.program.FileProgramStateManager(tmp_path / 'state'),
      tff_debias.ClientStorage(tmp_path / 'clients'),
    ),
    len(ROUNDS),
    native_program_context(),
  )
  own = fed_avg.initialize()
  for client_data in rounds:
    own = fed_avg.next(own, client_data).state
  assert_same(fed_avg.get_model_weights(state), fed_avg.get_model_weights(own))


@pytest.mark.slow
def test_train_model_with_vizier(processes, expected, tmp_path):
  """A study of two trials; TFF sets the rate of each in the first state."""
  process, composed, folder = processes

  class Trial:
    def __init__(self, rate):
      self.parameters, self.measurements = {'learning_rate': rate}, []

    def materialize(self):
      return types.SimpleNamespace(
        creation_time=datetime.datetime.now().astimezone()
      )

    def check_early_stopping(self):
      return False

    def add_measurement(self, measurement):
      self.measurements.append(measurement)

  class Study:
    left, done = [Trial(0.05), Trial(0.025)], []

    def trials(self):
      return types.SimpleNamespace(get=lambda: self.done)

    def suggest(self, count, client_id):
      self.done.append(self.left.pop(0))
      return self.done[-1:]

  @tff.tensorflow.computation(
    composed.get_hparams.type_signature.result,
    collections.OrderedDict(learning_rate=np.float64),
  )
  def update_hparams(hparams, parameters):
    rate = tf.cast(parameters['learning_rate'], tf.float32)
    return collections.OrderedDict(hparams, learning_rate=rate)

  async def train_without_evaluation(evaluation_manager, **arguments):
    await tff.learning.programs.train_model(
      evaluation_manager=None, **arguments
    )

  study, released = Study(), {}

  def output_manager(trial):
    rate = trial.parameters['learning_rate']
    return released.setdefault(rate, tff.program.MemoryReleaseManager())

  context = programs.program_context()
  with (
    tff.framework.get_context_stack().install(context),
    asyncio.Runner() as runner,
  ):
    runner.run(
      tff.learning.programs.train_model_with_vizier(
        study=study,
        total_trials=2,
        update_hparams=update_hparams,
        train_model_program_logic=train_without_evaluation,
        train_process_factory=lambda trial: composed,
        train_data_source=SOURCE,
        total_rounds=len(ROUNDS),
        num_clients=2,
        program_state_manager_factory=lambda trial: (
          tff_debias.StorageStateManager(
            tff.program.FileProgramStateManager(
              tmp_path / str(trial.parameters['learning_rate'])
            ),
            tff_debias.ClientStorage(folder),
          )
        ),
        model_output_manager_factory=output_manager,
        evaluation_manager_factory=lambda trial: (
          tff.learning.programs.EvaluationManager(
            None,
            None,
            lambda name: tff.program.FileProgramStateManager(tmp_path / name),
            None,
            1,
          )
        ),
        evaluation_periodicity=100,
      )
    )
  weights = [
    process.get_model_weights(
      manager.values()[f'training_checkpoint_round_{len(ROUNDS)}']
    )
    for manager in released.values()
  ]
  assert_same(weights[0], expected)
  assert np.abs(weights[1].trainable[0] - expected.trainable[0]).max() > 0.01
  assert [len(trial.measurements) for trial in study.done] == [5, 5]


@pytest.mark.slow
def test_checkpoints_of_train_model_are_one_round_behind_at_most(
  processes, tmp_path
):
  class Manager(tff_debias.StorageStateManager):
    async def save(self, program_state, version):
      await super().save(program_state, version)
      saved.append(version)

  class Rounds(list):
    # TFF asks for the participants when a round begins.
    def __getitem__(self, i):
      behind.append(i - max(saved, default=0))
      return super().__getitem__(i)

  saved, behind = [], []
  process, _, folder = processes
  clients = {i: client(i) for i in IDS}
  for participant in clients.values():
    participant['data'] = participant['data'].repeat(1000)
  source = programs.data_source(
    Rounds([clients[i] for i in ids] for ids in ROUNDS[:3]),
    process.next.type_signature.parameter[1],
  )
  manager = Manager(
    tff.program.FileProgramStateManager(tmp_path / 'state'),
    tff_debias.ClientStorage(folder),
  )
  programs.train_model(process, source, manager, 3)
  assert len(behind) == 3 and max(behind) <= 1, (behind, saved)


def test_train_model_with_ids_chosen_at_random(processes, manager):
  _, process, _ = processes
  state = programs.train_model(
    process, tff.program.ClientIdDataSource(IDS), manager, 3
  )
  assert np.abs(process.get_model_weights(state).trainable[0]).max() > 0.1


def test_clients_of_any_type(processes, expected):
  """A client is its id, or a number of which its data and its id are made."""
  process, *_ = processes

  @tff.tensorflow.computation(np.int32)
  def read(place):
    return CLIENT_DATA.serializable_dataset_fn(tf.gather(IDS, place))

  @tff.tensorflow.computation(np.int32)
  def name(place):
    return tf.gather(IDS, place)

  composed = tff_debias.compose_with_dataset_computation(process, read, name)
  state = composed.initialize()
  for ids in ROUNDS:
    state = composed.next(state, [IDS.index(i) for i in ids]).state
  assert_same(process.get_model_weights(state), expected)
  with pytest.raises(TypeError, match='needs an id: give id_computation'):
    tff_debias.compose_with_dataset_computation(process, read)


@pytest.mark.slow
def test_plain_data_and_cohorts_of_any_size(fed_avg):
  """In TFF's composition, another `LearningProcess`, and by the thousand."""
  wrapped = tff.learning.templates.LearningProcess(
    fed_avg.initialize,
    fed_avg.next,
    fed_avg.get_model_weights,
    fed_avg.set_model_weights,
    get_hparams_fn=fed_avg.get_hparams,
    set_hparams_fn=fed_avg.set_hparams,
  )
  by_id = tff.simulation.compose_dataset_computation_with_learning_process(
    CLIENT_DATA.dataset_computation, wrapped
  )
  states = [process.initialize() for process in (fed_avg, by_id)]
  for ids in (['a', 'b'], [], ['c'], IDS * 250):
    data = [client(i)['data'] for i in IDS]
    data = [data[IDS.index(i)] for i in ids]
    outputs = [fed_avg.next(states[0], data), by_id.next(states[1], ids)]
    states = [output.state for output in outputs]
    work = outputs[0].metrics['client_work']
    assert (work['participants'], work['left_out']) == (len(ids), 0)
  assert_same(*map(fed_avg.get_model_weights, states))


def convolution():
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input([4, 4, 1]),
      tf.keras.layers.Conv2D(2, 3),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(2),
    ]
  )


@pytest.mark.slow
def test_personalize_fns_beside_each_other(runtime):
  spec = (tf.TensorSpec([None, 4, 4, 1]), tf.TensorSpec([None], tf.int32))
  loss = tf.keras.losses.SparseCategoricalCrossentropy(True)

  def model_fn():
    return tff.learning.models.from_keras_model(convolution(), loss, spec)

  def build_another():
    """Fine-tunes as TFF's example does."""
    optimizer = tf.keras.optimizers.SGD(0.1)

    @tf.function
    def personalize(model, train, test, context=None):
      for batch in train.batch(2):
        with tf.GradientTape() as tape:
          output = model.forward_pass(batch)
        variables = model.trainable_variables
        gradient = tape.gradient(output.loss, variables)
        optimizer.apply_gradients(zip(gradient, variables, strict=True))
      loss = 0.0
      for batch in test.batch(4):
        loss = model.forward_pass(batch).loss
      return collections.OrderedDict(loss=loss)

    return personalize

  @tf.function
  def baseline(model, dataset):
    for batch in dataset.batch(4):
      model.forward_pass(batch)
    return collections.OrderedDict(size=dataset.reduce(0, lambda n, _: n + 1))

  random = np.random.RandomState(0)
  x = random.normal(size=(4, 4, 4, 1)).astype(np.float32)
  data = tf.data.Dataset.from_tensor_slices((x, np.int32([0, 1, 0, 1])))
  clients = [collections.OrderedDict(train_data=data, test_data=data)]
  model = tff_debias.from_keras(convolution, loss, spec)
  ours = {'maml': MAML, 'prototypes': tff_debias.Proto()}
  weights = tff.learning.models.ModelWeights.from_model(model_fn())
  fns = collections.OrderedDict(other=build_another) | {
    name: tff_debias.build_personalize_fn(model, personalization, 2)
    for name, personalization in ours.items()
  }
  evaluate = tff.learning.algorithms.build_personalization_eval_computation(
    model_fn, fns, baseline
  )
  found = evaluate(weights, clients)
  # As in our own test.
  batches = data.batch(2)
  for name, personalization in ours.items():
    (own,) = tff_debias.build_client_evaluation(model, personalization)(
      weights, [{'train': batches, 'test': batches}]
    )
    assert found[name]['is_included'].all()
    np.testing.assert_allclose(found[name]['loss'], [own['loss']], rtol=1e-6)
