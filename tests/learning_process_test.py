import asyncio
import collections
import dataclasses
import math
import os

import numpy as np
import small_models
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import corrections
from tff_debias import learning_process
from tff_debias import models
from tff_debias import personalizations
from tff_debias import runtime as runtime_lib
from tff_debias import storage as storage_lib

pytestmark = pytest.mark.usefixtures('runtime')

NONE = personalizations.NoPersonalization()
MAML = personalizations.Maml(num_steps=1, learning_rate=0.1)
DYN = corrections.Dyn(alpha=0.5)
SCAF = corrections.Scaf()
PLAIN = corrections.NoCorrection()
DATA = problems.linear_data(5)
NAN = (DATA[0][0] * np.nan, DATA[0][1])


def build(correction, folder=None, personalization=NONE, **options):
  """A process on the linear problem."""
  if folder is not None:
    options.setdefault('storage', storage_lib.ClientStorage(folder))
    options.setdefault('num_clients', 5)
  model = options.pop('model', None) or problems.linear_model()
  return learning_process.build_learning_process(
    model, personalization, correction, **options
  )


def device(i, num_batches=3, data=None):
  return problems.client(f'device {i}', *(data or DATA[i]), num_batches)


def selected(process, state):
  return process.get_model_weights(state).trainable[0]


def everything(state):
  """All numbers of a state."""
  return [np.asarray(value) for value in tf.nest.flatten(state)]


def assert_same(state, other):
  for value, expected in zip(everything(state), everything(other), strict=True):
    np.testing.assert_array_equal(value, expected)


def assert_close(state, other):
  for value, expected in zip(everything(state), everything(other), strict=True):
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def local_steps(w, i, num_steps=3, rate=0.1, term=None):
  """Full-batch gradient descent on the squared error, in NumPy."""
  x, y = DATA[i]
  start = w
  for _ in range(num_steps):
    gradient = 2 * x.T @ (x @ w - y) / len(x)
    if term is not None:
      gradient = gradient + term(w, start)
    w = w - rate * gradient
  return w


# Against TFF's own federated averaging.


@pytest.mark.parametrize('momentum', [None, 0.5])
def test_fed_avg_is_that_of_tff(momentum):
  tf.keras.utils.set_random_seed(1)
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((3,)),
      tf.keras.layers.Dense(4, 'tanh'),
      tf.keras.layers.Dense(1),
    ]
  )
  initial = keras_model.get_weights()
  model = models.from_keras(
    keras_model, tf.keras.losses.MeanSquaredError(), problems.LINEAR_SPEC
  )

  def model_fn():
    network = tf.keras.Sequential(
      [
        tf.keras.layers.Input((3,)),
        tf.keras.layers.Dense(4, 'tanh'),
        tf.keras.layers.Dense(1),
      ]
    )
    return tff.learning.models.from_keras_model(
      network,
      loss=tf.keras.losses.MeanSquaredError(),
      input_spec=problems.LINEAR_SPEC,
    )

  if momentum is None:
    optimizer = None
    theirs_optimizer = tff.learning.optimizers.build_sgdm(1.0)
  else:
    optimizer = tff.learning.optimizers.build_sgdm(0.7, momentum)
    theirs_optimizer = optimizer
  theirs = tff.learning.algorithms.build_unweighted_fed_avg(
    model_fn,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.05),
    server_optimizer_fn=theirs_optimizer,
  )
  ours = build(
    PLAIN,
    model=model,
    learning_rate=0.05,
    max_grad_norm=math.inf,
    server_optimizer_fn=optimizer,
  )
  state = ours.initialize()
  their_state = theirs.set_model_weights(
    theirs.initialize(), tff.learning.models.ModelWeights(initial, [])
  )
  for participants in ([0, 1], [1, 2, 3], [4, 0], [2, 3]):
    clients = [
      problems.client(f'{i}', *DATA[i], 5, batch_size=3) for i in participants
    ]
    state, metrics = ours.next(state, clients)
    their_state, their_metrics = theirs.next(
      their_state, [client['data'] for client in clients]
    )
    for weight, expected in zip(
      ours.get_model_weights(state).trainable,
      theirs.get_model_weights(their_state).trainable,
      strict=True,
    ):
      np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    train = metrics['client_work']['train']
    expected = their_metrics['client_work']['train']
    assert train['num_examples'] == expected['num_examples']
    np.testing.assert_allclose(train['loss'], expected['loss'], rtol=1e-5)


# Extensions from outside.


@dataclasses.dataclass(frozen=True)
class FedProx(corrections.Correction):
  """R_i(w) = μ (w - w^t), with no state anywhere."""

  mu: float

  def gradient_term(self, server_message, device_state, weights, start):
    return tuple(
      self.mu * (w - w_start) for w, w_start in zip(weights, start, strict=True)
    )


def test_a_correction_of_a_third_party():
  process = build(FedProx(2.0))
  w = np.zeros((3, 1))
  state = process.initialize()
  for participants in ([0, 1], [2, 3, 4]):
    state, _ = process.next(state, [device(i) for i in participants])
    ends = [
      local_steps(w, i, term=lambda w, start: 2.0 * (w - start))
      for i in participants
    ]
    w = np.mean(ends, axis=0)
    np.testing.assert_allclose(selected(process, state), w, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class RidgeHead(personalizations.Personalization):
  """The last layer is fitted to the support data, in closed form."""

  ridge: float = 0.5

  def _head(self, features, y):
    gram = tf.matmul(features, features, transpose_a=True)
    gram += self.ridge * tf.eye(features.shape[1])
    return tf.linalg.solve(gram, tf.matmul(features, y, transpose_a=True))

  def meta_loss(self, model, weights, batches, weight_decay):
    (x, y), (query, labels) = batches
    features = model.apply(weights, x, True).feature
    predictions = tf.matmul(
      model.apply(weights, query, True).feature, self._head(features, y)
    )
    return personalizations.Result(
      model.loss(labels, predictions), labels, predictions
    )

  def personalize(self, model, weights, dataset, max_grad_norm):
    raise NotImplementedError

  def evaluate(self, model, personalized, batch):
    raise NotImplementedError


def test_a_personalization_of_a_third_party(tmp_path):
  tf.keras.utils.set_random_seed(1)
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((3,)),
      tf.keras.layers.Dense(2, use_bias=False),
      tf.keras.layers.Dense(1, use_bias=False),
    ]
  )
  w, head = keras_model.get_weights()
  model = models.from_keras(
    keras_model, tf.keras.losses.MeanSquaredError(), problems.LINEAR_SPEC
  )
  process = build(
    SCAF,
    tmp_path,
    RidgeHead(),
    model=model,
    learning_rate=0.01,
    max_grad_norm=math.inf,
  )
  # The support is the first five examples, the query the rest.
  client = problems.client('a', *DATA[0], 2, batch_size=5)
  state, _ = process.next(process.initialize(), [client])
  (x, y), (query, labels) = (
    [part.numpy().astype(np.float64) for part in batch]
    for batch in client['data']
  )

  def loss(w):
    features = x @ w
    gram = features.T @ features + 0.5 * np.eye(2)
    fitted = np.linalg.solve(gram, features.T @ y)
    return np.mean((query @ w @ fitted - labels) ** 2)

  slope = np.zeros_like(w, dtype=np.float64)
  for index in np.ndindex(w.shape):
    step = np.zeros_like(slope)
    step[index] = 1e-5
    slope[index] = (loss(w + step) - loss(w - step)) / 2e-5
  assert np.linalg.norm(slope) > 0.1
  new, new_head = process.get_model_weights(state).trainable
  np.testing.assert_allclose((w - new) / 0.01, slope, rtol=1e-3, atol=1e-3)
  np.testing.assert_array_equal(new_head, head)


# Aggregators.


@pytest.mark.parametrize(
  'factory',
  [
    tff.aggregators.UnweightedMeanFactory(),
    tff.aggregators.MeanFactory(no_nan_division=True),
    tff.learning.robust_aggregator(zeroing=True, clipping=False),
  ],
  ids=['unweighted', 'weighted', 'robust'],
)
def test_an_aggregator_gives_the_mean_of_those_that_count(tmp_path, factory):
  process = build(SCAF, tmp_path, aggregator=factory, learning_rate=0.05)
  clients = [device(0), device(1, data=NAN), device(2)]
  state, metrics = process.next(process.initialize(), clients)
  ends = [local_steps(np.zeros((3, 1)), i, rate=0.05) for i in (0, 2)]
  np.testing.assert_allclose(
    selected(process, state), np.mean(ends, axis=0), atol=1e-5
  )
  # c_i is minus the update over K β, and c their sum over m.
  np.testing.assert_allclose(
    state.finalizer['correction'][0],
    -np.sum(ends, axis=0) / (3 * 0.05) / 5,
    atol=1e-5,
  )
  assert metrics['client_work']['participants'] == 2
  # Rounds that nobody counts in leave the aggregator as it was, too.
  for nobody in ([], [device(1, data=NAN)]):
    after, metrics = process.next(state, nobody)
    assert_same(after.aggregator['process'], state.aggregator['process'])
    assert_same(after.finalizer, state.finalizer)
    assert_same(after.global_model_weights, state.global_model_weights)
    assert metrics['finalizer']['update_norm'] == 0


def test_a_clipping_aggregator_clips():
  factory = tff.aggregators.clipping_factory(
    0.25, tff.aggregators.UnweightedMeanFactory()
  )
  process = build(PLAIN, aggregator=factory)
  state, metrics = process.next(process.initialize(), [device(0), device(1)])
  updates = [local_steps(np.zeros((3, 1)), i) for i in (0, 1)]
  assert min(np.linalg.norm(update) for update in updates) > 0.25
  expected = np.mean(
    [0.25 * update / np.linalg.norm(update) for update in updates], axis=0
  )
  np.testing.assert_allclose(selected(process, state), expected, atol=1e-5)
  np.testing.assert_allclose(
    metrics['finalizer']['update_norm'], np.linalg.norm(expected), rtol=1e-5
  )


class OtherTypeFactory(tff.aggregators.UnweightedAggregationFactory):
  """Gives one number, and not a model."""

  def create(self, value_type):
    @tff.federated_computation
    def initialize():
      return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
      initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
    )
    def next_fn(state, value):
      del value
      return tff.templates.MeasuredProcessOutput(
        state,
        tff.federated_value(1.0, tff.SERVER),
        tff.federated_value((), tff.SERVER),
      )

    return tff.templates.AggregationProcess(initialize, next_fn)


@pytest.mark.parametrize(
  ('aggregator', 'message'),
  [
    ('mean', 'aggregator must be a tff.aggregators factory, got str'),
    (tff.aggregators.MeanFactory, 'aggregator must be .* factory, got'),
    (OtherTypeFactory(), 'aggregator must keep the type'),
  ],
)
def test_a_wrong_aggregator_is_refused(tmp_path, aggregator, message):
  with pytest.raises(TypeError, match=message):
    build(DYN, tmp_path / 'new', aggregator=aggregator)
  # The folder is not claimed, so that the next try may have it.
  assert not (tmp_path / 'new').exists()


# Retried and resumed rounds.


@pytest.mark.parametrize('correction', [DYN, SCAF], ids=['dyn', 'scaf'])
def test_a_round_that_is_run_again_counts_once(tmp_path, correction):
  process = build(correction, tmp_path / 'a', track_all=True)
  rounds = [[0, 1, 2], [1, 2, 3], [0, 2, 4]]

  def run(times):
    state = process.initialize()
    for participants in rounds:
      outputs = [
        process.next(state, [device(i) for i in participants])
        for _ in range(times)
      ]
      for output in outputs[1:]:
        assert_same(output.state, outputs[0].state)
        assert_same(output.metrics, outputs[0].metrics)
      state = outputs[-1].state
    return state

  once = run(1)
  files = problems.snapshot(tmp_path)
  storage_lib.ClientStorage(tmp_path / 'a').rollback(0)
  assert_same(run(3), once)
  assert problems.snapshot(tmp_path) == files


@pytest.mark.parametrize(
  ('correction', 'options'),
  [
    (DYN, {'keep_total': 2, 'keep_first': False}),
    (SCAF, {}),
  ],
  ids=['dyn', 'scaf'],
)
def test_a_resumed_run_is_as_never_stopped(tmp_path, correction, options):
  """By `tff.simulation.run_training_process`, with a new process each time."""
  rounds = [None, [0, 1], [1, 2], [0, 3], [2, 4], [1, 3], [0, 4], [2, 3]]

  def run(name, num_rounds):
    storage = storage_lib.ClientStorage(tmp_path / name / 'devices', run=name)
    process = build(correction, storage=storage, num_clients=5, track_all=True)
    manager = storage_lib.StorageStateManager(
      tff.program.FileProgramStateManager(tmp_path / name / 'state', **options),
      storage,
    )
    asyncio.set_event_loop(asyncio.new_event_loop())
    state = tff.simulation.run_training_process(
      process,
      training_selection_fn=lambda t: [device(i) for i in rounds[t]],
      total_rounds=num_rounds,
      program_state_manager=manager,
      rounds_per_saving_program_state=2,
    )
    return process, storage, state

  _, _, expected = run('straight', 7)
  process, _, state = run('stopped', 4)
  # What follows is never saved: two rounds with other devices, then a crash.
  for participants in ([0, 4], [3, 4, 1]):
    state, _ = process.next(state, [device(i) for i in participants])
  _, storage, state = run('stopped', 7)
  assert_same(state, expected)
  left = [
    len([name for name in names if name.endswith('.index')])
    for _, _, names in os.walk(tmp_path / 'stopped' / 'devices' / 'devices')
  ]
  if options:
    # Checkpoints 4 and 6 are kept, so that two versions and round 7's remain.
    assert max(left) <= 3
    assert sum(left) < sum(len(r) for r in rounds[1:])
  # And the device states go on from there.
  assert_same(
    *(
      process.next(state, [device(i) for i in range(5)]).state
      for process in (run('straight', 7)[0], run('stopped', 7)[0])
    )
  )


def test_a_write_that_fails_loses_nothing(tmp_path):
  process = build(DYN, tmp_path)
  state = process.initialize()
  state, _ = process.next(state, [device(0), device(1)])
  expected = process.next(state, [device(1), device(2)]).state
  os.rename(tmp_path / 'devices', tmp_path / 'away')
  (tmp_path / 'devices').write_text('in the way')
  with pytest.raises(Exception, match='devices'):
    process.next(state, [device(1), device(2)])
  (tmp_path / 'devices').unlink()
  os.rename(tmp_path / 'away', tmp_path / 'devices')
  assert_same(process.next(state, [device(1), device(2)]).state, expected)


def test_a_damaged_state_stops_the_round(tmp_path):
  process = build(DYN, tmp_path)
  state, _ = process.next(process.initialize(), [device(0), device(1)])
  for path in tmp_path.glob('devices/*/*/*.data*'):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
  with pytest.raises(Exception, match='(?i)checksum|data.?loss|corrupt'):
    process.next(state, [device(0)])
  process.next(state, [device(2)])


def test_ids_of_any_bytes_have_states_of_their_own(tmp_path):
  ids = ['', '../x', '*', 'x' * 10_000, 'new\nline', 'A', 'a', '1', '%s']
  ids += [client_id.encode() for client_id in ('Gerät', 'nul\0', 'nul', '\0')]
  ids += [b'\xff\xfe']
  process = build(DYN, tmp_path / 'in', num_clients=len(ids))
  data = problems.linear_data(len(ids), seed=1)
  clients = [
    problems.client(client_id, x, y, 2)
    for client_id, (x, y) in zip(ids, data, strict=True)
  ]
  process.next(process.initialize(), clients)
  assert [path.name for path in tmp_path.iterdir()] == ['in']
  storage = storage_lib.ClientStorage(tmp_path / 'in')
  for client_id, (x, y) in zip(ids, data, strict=True):
    found, (kept,) = storage.read(
      tf.constant(client_id), tf.constant(2), [tf.zeros([3, 1])]
    )
    assert found
    # The first λ_i is -α (w_i - w^t), with α (w - w^t) in the gradient.
    w = np.zeros((3, 1))
    for _ in range(2):
      w = w - 0.1 * (2 * x.T @ (x @ w - y) / len(x) + 0.5 * w)
    np.testing.assert_allclose(kept, -0.5 * w, atol=1e-5)


# Devices that do not count.


def test_devices_that_do_not_count(tmp_path):
  process = build(DYN, tmp_path, MAML, track_all=True)
  state = process.initialize()
  state, _ = process.next(state, [device(i, 6) for i in (0, 1, 2)])

  def files(i):
    """Those of a device, and nothing else."""
    return {
      name: content
      for path in tmp_path.glob('devices/*/*')
      if (path / 'client_id').read_text() == f'device {i}'
      for name, content in problems.snapshot(path).items()
    }

  before = [files(i) for i in range(5)]
  assert [len(found) > 0 for found in before] == [True] * 3 + [False] * 2
  expected = process.next(state, [device(2, 6)])
  storage_lib.ClientStorage(tmp_path).rollback(1)
  out = process.next(
    state,
    [
      device(0, 6, data=NAN),
      device(1, 0),
      device(2, 6),
      device(3, 1),
      device(4, 6, data=(DATA[4][0] * 1e30, DATA[4][1])),
    ],
  )
  for i in (0, 1, 3, 4):
    assert files(i) == before[i]
  assert len(files(2)) > len(before[2])
  assert out.metrics['client_work']['participants'] == 1
  assert out.metrics['client_work']['left_out'] == 4
  assert_close(
    (out.state.global_model_weights, out.state.finalizer),
    (expected.state.global_model_weights, expected.state.finalizer),
  )
  train, expected_train = (
    output.metrics['client_work']['train'] for output in (out, expected)
  )
  assert_close(train, expected_train)


@pytest.mark.parametrize('nobody', [[], [device(0, data=NAN), device(1, 0)]])
def test_a_round_in_which_nobody_counts(tmp_path, nobody):
  process = build(
    SCAF,
    tmp_path,
    track_all=True,
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(0.5, momentum=0.9),
  )
  state, _ = process.next(process.initialize(), [device(0), device(1)])
  files = problems.snapshot(tmp_path)
  after, metrics = process.next(state, nobody)
  assert_same(after.global_model_weights, state.global_model_weights)
  assert_same(after.finalizer, state.finalizer)
  assert problems.snapshot(tmp_path) == files
  assert after.client_work['round'] == 2
  work = metrics['client_work']
  assert (work['participants'], work['left_out']) == (0, len(nobody))
  assert work['train']['num_examples'] == 0
  assert metrics['finalizer']['update_norm'] == 0
  assert all(np.isfinite(value) for value in tf.nest.flatten(metrics))


# Metrics and accessors.


def test_the_metrics_of_a_round(tmp_path):
  model = problems.linear_model(
    metrics=lambda: [tf.keras.metrics.MeanAbsoluteError('error')]
  )
  process = build(DYN, tmp_path, model=model)
  clients = [device(0, 1), device(1, 2), device(2, data=NAN)]
  state, metrics = process.next(process.initialize(), clients)
  w = np.zeros((3, 1))
  # Before each step: device 0 takes one, device 1 two.
  residuals = [DATA[i][0] @ w - DATA[i][1] for i in (0, 1)]
  step = local_steps(w, 1, 1, term=lambda w, start: 0.5 * (w - start))
  residuals.append(DATA[1][0] @ step - DATA[1][1])
  work = metrics['client_work']
  assert list(work['train']) == ['loss', 'error', 'num_examples']
  np.testing.assert_allclose(
    work['train']['loss'], np.mean(np.square(residuals)), rtol=1e-5
  )
  np.testing.assert_allclose(
    work['train']['error'], np.mean(np.abs(residuals)), rtol=1e-5
  )
  assert work['train']['num_examples'] == 24
  assert (work['participants'], work['left_out']) == (2, 1)
  ends = [
    local_steps(w, i, k, term=lambda w, start: 0.5 * (w - start))
    for i, k in ((0, 1), (1, 2))
  ]
  norms = [np.linalg.norm(0.5 * end) for end in ends]
  np.testing.assert_allclose(work['correction_norm'], np.mean(norms), rtol=1e-5)
  finalizer = metrics['finalizer']
  mean = np.mean(ends, axis=0)
  np.testing.assert_allclose(
    finalizer['update_norm'], np.linalg.norm(mean), rtol=1e-5
  )
  np.testing.assert_allclose(
    finalizer['server_correction_norm'],
    np.linalg.norm(0.5 * 2 / 5 * mean),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ('correction', 'track_all', 'down', 'up'),
  [
    (PLAIN, False, 1, 1),
    (DYN, False, 1, 1),
    (SCAF, False, 2, 2),
    (PLAIN, True, 1, 2),
    (SCAF, True, 2, 3),
  ],
)
def test_what_is_sent_is_counted(tmp_path, correction, track_all, down, up):
  process = build(correction, tmp_path, track_all=track_all)
  state = process.initialize()
  # Models of three weights. Besides them: the round and two hyperparameters;
  # what a device reports is six numbers.
  for devices, total in (([0, 1], 2), ([2], 3), ([], 3), ([0, 1, 2], 6)):
    state, metrics = process.next(state, [device(i) for i in devices])
    sent, received = metrics['distributor'], metrics['aggregator']
    assert (sent['models'], received['models']) == (total * down, total * up)
    assert sent['bytes'] == total * (down * 12 + 12)
    assert received['bytes'] == total * (up * 12 + 24)
  left_out = process.next(state, [device(3, data=NAN)]).metrics
  assert left_out['distributor']['models'] == 7 * down
  assert left_out['aggregator']['models'] == 7 * up


@pytest.mark.parametrize(
  'aggregator', [None, tff.aggregators.UnweightedMeanFactory()]
)
def test_all_is_the_mean_of_the_newest_models(tmp_path, aggregator):
  process = build(
    DYN,
    tmp_path,
    track_all=True,
    learning_rate=0.05,
    max_grad_norm=math.inf,
    aggregator=aggregator,
  )
  initial = np.array([[1.0], [-2.0], [3.0]], np.float32)
  state = process.set_model_weights(
    process.initialize(), tff.learning.models.ModelWeights((initial,), ())
  )
  newest = [initial] * 5
  for participants in ([0, 1], [1, 2], [1], [4, 0]):
    start = selected(process, state) - state.finalizer['correction'][0] / 0.5
    kept = storage_lib.ClientStorage(tmp_path)
    for i in participants:
      _, (lam, _) = kept.read(
        tf.constant(f'device {i}'),
        tf.constant(int(state.client_work['round']) + 1),
        [tf.zeros([3, 1])] * 2,
      )
      newest[i] = local_steps(
        start,
        i,
        rate=0.05,
        term=lambda w, start, lam=lam: 0.5 * (w - start) - lam,
      )
    clients = [device(i) for i in participants] + [device(3, data=NAN)]
    state, _ = process.next(state, clients)
    np.testing.assert_allclose(
      learning_process.get_all_model_weights(state).trainable[0],
      np.mean(newest, axis=0),
      atol=1e-5,
    )
    same = process.set_model_weights(state, process.get_model_weights(state))
    assert_same(same, state)
  other = tff.learning.models.ModelWeights((initial * 2,), ())
  changed = process.set_model_weights(state, other)
  assert_same(process.get_model_weights(changed), other)
  assert_same(changed.finalizer, state.finalizer)


def test_all_must_be_asked_for():
  process = build(PLAIN)
  with pytest.raises(ValueError, match='track_all'):
    learning_process.get_all_model_weights(process.initialize())


def test_hyperparameters_can_be_changed():
  process = build(
    PLAIN,
    learning_rate=0.25,
    weight_decay=0.5,
    learning_rate_schedule=learning_process.exponential_decay(0.5),
  )
  state = process.initialize()
  hparams = process.get_hparams(state)
  assert hparams == {'learning_rate': 0.25, 'weight_decay': 0.5}
  assert_same(process.set_hparams(state, hparams), state)
  w, rates = np.zeros((3, 1)), [0.25, 0.125, 0.05, 0.025]
  for t, rate in enumerate(rates):
    if t == 2:
      changed = collections.OrderedDict(learning_rate=0.2, weight_decay=0.25)
      state = process.set_hparams(state, changed)
    decay = 0.5 if t < 2 else 0.25
    state, _ = process.next(state, [device(0)])
    w = local_steps(w, 0, rate=rate, term=lambda w, _, decay=decay: decay * w)
    np.testing.assert_allclose(selected(process, state), w, atol=1e-4)


def test_exponential_decay():
  schedule = learning_process.exponential_decay(0.9)
  for t in (0, 1, 100):
    assert float(schedule(tf.constant(t))) == pytest.approx(0.9**t, rel=1e-4)


# Forms and programs of TFF.


def test_it_compiles_to_the_forms_of_tff(tmp_path):
  process = build(DYN, tmp_path, MAML, track_all=True)
  form = tff.backends.mapreduce.get_map_reduce_form_for_computation(
    process.next
  )
  assert isinstance(form, tff.backends.mapreduce.MapReduceForm)
  form = tff.backends.mapreduce.get_distribute_aggregate_form_for_computation(
    process.next
  )
  assert isinstance(form, tff.backends.mapreduce.DistributeAggregateForm)


class _Iterator(tff.program.FederatedDataSourceIterator):
  """Gives devices 1, 2 and 3, then 2, 3 and 4, and so on."""

  def __init__(self, position=0):
    self._position = position

  @property
  def federated_type(self):
    return _Source().federated_type

  def select(self, k=None):
    self._position += 1
    return [device((self._position + i) % 5) for i in range(k)]

  def to_bytes(self):
    return str(self._position).encode()

  @classmethod
  def from_bytes(cls, buffer):
    return cls(int(buffer))


class _Source(tff.program.FederatedDataSource):
  @property
  def federated_type(self):
    batch = tff.types.tensorflow_to_type(problems.LINEAR_SPEC)
    client = collections.OrderedDict(
      client_id=np.str_, data=tff.SequenceType(batch)
    )
    return tff.FederatedType(tff.to_type(client), tff.CLIENTS)

  def iterator(self):
    return _Iterator()


def test_train_model_of_tff_runs_it_and_resumes_it(tmp_path):
  expected = build(DYN, tmp_path / 'other')
  state = expected.initialize()
  for t in range(1, 7):
    participants = [device((t + i) % 5) for i in range(3)]
    state, metrics = expected.next(state, participants)
  storage = storage_lib.ClientStorage(tmp_path / 'devices', run='r')
  process = build(DYN, storage=storage, num_clients=5)
  models_released = tff.program.MemoryReleaseManager()
  metrics_released = tff.program.MemoryReleaseManager()

  def run(num_rounds):
    program = tff.learning.programs.train_model(
      train_process=process,
      train_data_source=_Source(),
      train_per_round_clients=3,
      train_total_rounds=num_rounds,
      program_state_manager=storage_lib.StorageStateManager(
        tff.program.FileProgramStateManager(tmp_path / 'state'), storage
      ),
      model_output_manager=models_released,
      train_metrics_manager=metrics_released,
      evaluation_manager=None,
      evaluation_periodicity=1,
    )
    stack = tff.framework.get_context_stack()
    with (
      stack.install(runtime_lib.ProgramContext()),
      asyncio.Runner() as runner,
    ):
      runner.run(program)

  run(3)
  # A round that is not saved, of all devices.
  for i in range(5):
    storage.write(tf.constant(f'device {i}'), tf.constant(4), [tf.ones([3, 1])])
  run(6)
  released = models_released.values()['training_checkpoint_round_6']
  assert_same(released.global_model_weights, state.global_model_weights)
  assert_same(released.finalizer, state.finalizer)
  released = metrics_released.values()[6]
  assert_same(released['model_metrics'], metrics['client_work']['train'])


# Arguments.


@pytest.mark.parametrize(
  ('options', 'error', 'message'),
  [
    ({'learning_rate': 0}, ValueError, 'learning_rate must be a positive.* 0'),
    ({'learning_rate': '1'}, ValueError, "learning_rate must be .*'1'"),
    ({'learning_rate': math.inf}, ValueError, 'learning_rate must be .*inf'),
    ({'learning_rate': math.nan}, ValueError, 'learning_rate must be .*nan'),
    ({'learning_rate': True}, ValueError, 'learning_rate must be .*True'),
    ({'weight_decay': -1}, ValueError, 'weight_decay must be a nonneg.*-1'),
    ({'max_grad_norm': 0}, ValueError, 'max_grad_norm must be a positive.* 0'),
    ({'max_grad_norm': None}, ValueError, 'max_grad_norm must be .*None'),
    ({'learning_rate_schedule': 0.9}, TypeError, 'rate_schedule .*function'),
    ({'num_clients': None}, ValueError, 'Dyn.* needs num_clients.*None'),
    ({'num_clients': 0}, ValueError, 'needs num_clients.* 0'),
    ({'num_clients': 2.5}, ValueError, 'needs num_clients.*2.5'),
    ({'num_clients': True}, ValueError, 'needs num_clients.*True'),
    ({'storage': None}, ValueError, 'Dyn.* needs storage.*None'),
    ({'storage': '/tmp/x'}, ValueError, "needs storage.*'/tmp/x'"),
    ({'correction': 'dyn'}, TypeError, "correction must be .*'dyn'"),
    ({'correction': corrections.Dyn}, TypeError, 'correction must be'),
    ({'personalization': None}, TypeError, 'personalization must be .*None'),
    ({'model': 3}, TypeError, 'model must be .* 3'),
    ({'server_optimizer_fn': 'sgd'}, TypeError, "server_optimizer_fn .*'sgd'"),
    (
      {'server_optimizer_fn': tff.learning.optimizers.build_sgdm(1.0)},
      ValueError,
      'Dyn.* server step .*server_optimizer_fn must be None',
    ),
    (
      {'correction': PLAIN, 'track_all': True, 'num_clients': None},
      ValueError,
      'track_all needs num_clients',
    ),
    (
      {'correction': PLAIN, 'track_all': True, 'storage': None},
      ValueError,
      'track_all .*needs storage',
    ),
    (
      {'personalization': personalizations.Proto()},
      ValueError,
      'Prototypes need one integer label',
    ),
  ],
)
def test_an_argument_that_is_wrong_is_named(tmp_path, options, error, message):
  arguments = {
    'model': problems.linear_model(),
    'personalization': NONE,
    'correction': DYN,
    'num_clients': 5,
    'storage': storage_lib.ClientStorage(tmp_path / 'new'),
    **options,
  }
  with pytest.raises(error, match=message):
    learning_process.build_learning_process(**arguments)
  assert not (tmp_path / 'new').exists()


def test_numbers_of_numpy_are_numbers(tmp_path):
  process = build(
    DYN,
    tmp_path,
    learning_rate=np.float32(0.25),
    num_clients=np.int64(5),
  )
  assert process.get_hparams(process.initialize())['learning_rate'] == 0.25


@pytest.mark.parametrize('rate', [0, -1, math.nan, math.inf, 'x'])
def test_a_wrong_rate_of_decay_is_named(rate):
  with pytest.raises(ValueError, match='rate must be a positive'):
    learning_process.exponential_decay(rate)


def test_a_storage_of_another_method_is_refused(tmp_path):
  """And nothing in it changes."""
  run = {'storage': storage_lib.ClientStorage(tmp_path, 'r'), 'num_clients': 5}
  process = build(DYN, **run)
  process.next(process.initialize(), [device(0)])
  before = problems.snapshot(tmp_path)
  wide = tf.keras.Sequential(
    [tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)]
  )
  wide = models.from_keras(
    wide, tf.keras.losses.MeanSquaredError(), problems.LINEAR_SPEC
  )
  for what, arguments in {
    'correction': (SCAF, None, NONE, run),
    r'correction: it has .Dyn\(alpha=0.5': (
      corrections.Dyn(alpha=0.25),
      None,
      NONE,
      run,
    ),
    'personalization': (DYN, None, MAML, run),
    'model': (DYN, None, NONE, {**run, 'model': wide}),
    'tracks_all': (DYN, None, NONE, {**run, 'track_all': True}),
  }.items():
    correction, folder, personalization, options = arguments
    with pytest.raises(storage_lib.ClientStorageError, match=what):
      build(correction, folder, personalization, **options)
  assert problems.snapshot(tmp_path) == before
  build(DYN, **run)
