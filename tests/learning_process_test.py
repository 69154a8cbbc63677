import collections
import dataclasses
import functools

import numpy as np
import pytest
import reference
import small_models
import storage_runs
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import corrections
from tff_debias import learning_process
from tff_debias import models
from tff_debias import personalizations

pytestmark = pytest.mark.usefixtures('runtime')

MAML = personalizations.Maml(num_steps=1, learning_rate=0.1)
DYN = corrections.Dyn(alpha=0.5)
SCAF = corrections.Scaf()
SCAF_EQUAL = corrections.Scaf(num_steps=3)
PLAIN = corrections.NoCorrection()
DATA, NAN = small_models.DATA, small_models.NAN
INITIAL = np.array([[1.0], [-2.0], [3.0]], np.float32)

build = small_models.linear_process
client = small_models.linear_client
selected = small_models.selected
assert_same = small_models.assert_same


def assert_close(structure, other):
  pairs = zip(tf.nest.flatten(structure), tf.nest.flatten(other), strict=True)
  for value, expected in pairs:
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def plain_loop(correction=PLAIN, loop=None, **options):
  """The plain loop on the linear model."""
  arguments = ([INITIAL], reference.squared_gradient)
  options = {'rate': lambda t: 0.05, **options}
  if loop is not None:
    return loop(*arguments, **options)
  return reference.loop_of(correction, *arguments, **options)


def run_beside(process, loop, rounds, before_round=None):
  """Runs rounds of both, and compares models and means after each of them.

  Args:
    process: The process.
    loop: The plain loop.
    rounds: For each round the number of batches of each participant.
    before_round: Changes the state, given the number of rounds done.

  Returns:
    The last state.
  """
  state = process.set_model_weights(
    process.initialize(), models.ModelWeights((INITIAL,), ())
  )
  for t, sizes in enumerate(rounds):
    if before_round is not None:
      state = before_round(t, state)
    participants = {i: client(i, size) for i, size in sizes.items()}
    loop.round({i: small_models.batches(p) for i, p in participants.items()})
    state, _ = process.next(
      state, small_models.participants(process, participants.values())
    )
    np.testing.assert_allclose(
      selected(process, state), loop.selected[0], atol=1e-5
    )
    for found, expected in zip(
      state.finalizer['mean_states'][0], reference.mean(loop.kept), strict=False
    ):
      np.testing.assert_allclose(found, expected, atol=1e-5)
    if state.finalizer['initial']:
      np.testing.assert_allclose(
        learning_process.get_all_model_weights(state).trainable[0],
        loop.all[0],
        atol=1e-5,
      )
  return state


# Against TFF's own algorithms.


def tanh_network():
  tf.keras.utils.set_random_seed(1)
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input((3,)),
      tf.keras.layers.Dense(4, 'tanh'),
      tf.keras.layers.Dense(1),
    ]
  )


class NegativeProx(corrections.Prox):
  """TFF 0.87 adds the proximal term with the wrong sign."""

  def __post_init__(self):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
  ('build_theirs', 'correction', 'momentum'),
  [
    (tff.learning.algorithms.build_unweighted_fed_avg, PLAIN, 0.5),
    (
      functools.partial(
        tff.learning.algorithms.build_unweighted_fed_prox, proximal_strength=0.5
      ),
      NegativeProx(mu=-0.5),
      None,
    ),
  ],
  ids=['momentum', 'prox'],
)
def test_fed_avg_and_fed_prox_are_those_of_tff(
  build_theirs, correction, momentum
):
  model = models.from_keras(
    tanh_network(),
    tf.keras.losses.MeanSquaredError(),
    small_models.LINEAR_SPEC,
  )

  def model_fn():
    return tff.learning.models.from_keras_model(
      tanh_network(),
      loss=tf.keras.losses.MeanSquaredError(),
      input_spec=small_models.LINEAR_SPEC,
    )

  optimizer, their_optimizer = None, tff.learning.optimizers.build_sgdm(1.0)
  if momentum is not None:
    optimizer = tff.learning.optimizers.build_sgdm(0.7, momentum)
    their_optimizer = optimizer
  theirs = build_theirs(
    model_fn,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.05),
    server_optimizer_fn=their_optimizer,
  )
  ours = build(
    correction,
    model=model,
    learning_rate=0.05,
    server_optimizer_fn=optimizer,
  )
  state = ours.initialize()
  their_state = theirs.set_model_weights(
    theirs.initialize(), ours.get_model_weights(state)
  )
  for participants in ([0, 1], [1, 2, 3]):
    # Each takes another number of steps, on batches of 3, 3 and 2 in turn.
    client_data = [
      client(i, 2 + 2 * i, batch_size=3)['data'] for i in participants
    ]
    state, metrics = ours.next(state, client_data)
    their_state, their_metrics = theirs.next(their_state, client_data)
    for weight, expected in zip(
      ours.get_model_weights(state).trainable,
      theirs.get_model_weights(their_state).trainable,
      strict=True,
    ):
      np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-6)
    train = metrics['client_work']['train']
    expected = their_metrics['client_work']['train']
    assert train['num_examples'] == expected['num_examples']
    np.testing.assert_allclose(train['loss'], expected['loss'], rtol=1e-5)


# Against the plain loop.

ROUNDS = [[0, 1], [1, 2], [1], [4, 0], [0, 1, 2, 3, 4]]
UNEQUAL = [{i: 1 + (i + t) % 4 for i in s} for t, s in enumerate(ROUNDS)]
EQUAL = [dict.fromkeys(s, 3) for s in ROUNDS]


_RATES = tf.constant([9.0, 0.1])
_TABLE = tf.lookup.StaticHashTable(
  tf.lookup.KeyValueTensorInitializer(
    [1, 2, 3], [0.09, 0.08, 0.07], tf.int32, tf.float32
  ),
  9.0,
)


def branching_rate(round_num):
  """It is called as TensorFlow 2 calls a function, and gives float64."""
  if round_num == 0:
    rate = _RATES[1]
  else:
    rate = _TABLE.lookup(round_num)
  rate = tf.cast(rate, tf.float64)
  return tf.where(round_num == 4, tf.constant(0.06, tf.float64), rate)


SCHEDULE = [0.1, 0.09, 0.08, 0.07, 0.06]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('correction', 'rounds', 'rate', 'options'),
  [
    (PLAIN, UNEQUAL, lambda t: 0.05, {'learning_rate': 0.05}),
    (
      SCAF_EQUAL,
      EQUAL,
      SCHEDULE.__getitem__,
      {
        'learning_rate_fn': branching_rate,
        'model_aggregator': tff.aggregators.UnweightedMeanFactory(),
      },
    ),
  ],
  ids=['plain', 'scaf with a schedule'],
)
def test_selected_and_all_are_those_of_the_plain_loop(
  tmp_path, correction, rounds, rate, options
):
  process = build(correction, tmp_path, track_all=True, **options)

  def before_round(t, state):
    """Another number of steps is refused, and loses nothing."""
    if correction is SCAF_EQUAL:
      for i, size in ((0, 2), (4, 5)):
        message = rf'Scaf\(num_steps=3\) needs 3 .*client {i}\W*{size}\b'
        with pytest.raises(Exception, match=f'(?s){message}'):
          process.next(state, [client(1), client(i, size), client(2)])
      # One without data is left out.
      process.next(state, [client(1), client(2, 0)])
    return state

  hparams = process.get_hparams(process.initialize())
  assert ('learning_rate' in hparams) == ('learning_rate' in options)
  loop = plain_loop(correction, rate=rate)
  state = run_beside(process, loop, rounds, before_round)
  # To set the model changes none of the newest models of clients.
  same = process.set_model_weights(state, process.get_model_weights(state))
  assert_same(same, state)
  other = models.ModelWeights((INITIAL * 2,), ())
  changed = process.set_model_weights(state, other)
  assert_same(process.get_model_weights(changed), other)
  assert_same(changed.finalizer, state.finalizer)
  # A client that is left out changes nothing either.
  after = process.next(state, [client(2), client(3, 3, NAN)]).state
  alone = process.next(state, [client(2)]).state
  assert_close(
    learning_process.get_all_model_weights(after),
    learning_process.get_all_model_weights(alone),
  )
  assert_close(after.finalizer, alone.finalizer)


# Extensions from outside.


@dataclasses.dataclass(frozen=True)
class Habit(corrections.Correction):
  """R_i(w) = s_i - s, with s_i ← s_i + ρ (w_i - w^t - s_i)."""

  rho: float

  is_broadcast = True

  def initial_state(self, weights):
    return tuple(tf.zeros_like(w) for w in weights)

  def gradient_term(self, state, mean, weights, start):
    return tuple(s_i - s for s_i, s in zip(state, mean, strict=True))

  def state_change(self, state, mean, work):
    return tuple(
      self.rho * (u - s_i) for u, s_i in zip(work.update, state, strict=True)
    )


class HabitLoop(reference.PlainLoop):
  rho = 0.5

  def term(self, i, w, start):
    return [self.kept[i][0] - self.mean_kept[0]]

  def new_kept(self, i, update, num_steps):
    return [(1 - self.rho) * self.kept[i][0] + self.rho * update[0]]


def test_a_correction_of_a_third_party_with_changed_hyperparameters(tmp_path):
  process = build(
    Habit(0.5), tmp_path, track_all=True, learning_rate=0.05, weight_decay=0.5
  )
  state = process.initialize()
  hparams = process.get_hparams(state)
  assert hparams == {
    'learning_rate': pytest.approx(0.05),
    'weight_decay': 0.5,
  }
  assert_same(process.set_hparams(state, hparams), state)
  loop = plain_loop(
    loop=HabitLoop,
    rate=lambda t: 0.05 if t < 2 else 0.03125,
    weight_decay=0.5,
  )

  def before_round(t, state):
    if t == 2:
      changed = collections.OrderedDict(
        learning_rate=0.03125, weight_decay=0.25
      )
      loop.weight_decay = 0.25
      state = process.set_hparams(state, changed)
      assert process.get_hparams(state) == changed
    return state

  run_beside(process, loop, UNEQUAL, before_round)


# Clients that are left out.


def test_clients_that_are_left_out(tmp_path):
  process = build(DYN, tmp_path, MAML, track_all=True, learning_rate=0.125)
  state = process.initialize()
  state, _ = process.next(state, [client(i, 6) for i in (0, 1, 2)])

  def files(i):
    """Those of a client, and nothing else."""
    paths = storage_runs.state_files(tmp_path, f'client {i}')
    return {path: path.read_bytes() for path in paths}

  before = [files(i) for i in range(5)]
  assert [len(found) > 0 for found in before] == [True] * 3 + [False] * 2
  expected = process.next(state, [client(2, 6)])
  out = process.next(
    state,
    [
      client(0, 6, data=NAN),
      client(1, 0),
      client(2, 6),
      client(3, 1, data=(DATA[3][0][:1], DATA[3][1][:1])),
      client(4, 6, data=(DATA[4][0] * 1e30, DATA[4][1])),
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
  # A round without a participant of those with data fails.
  short = client(1, 1, data=(DATA[0][0][:1], DATA[0][1][:1]))
  nan = client(2, 2, NAN)
  with pytest.raises(Exception, match='Round 2: no client took .* 2 batches'):
    process.next(state, [short, client(3, 0)])
  message = 'Round 2: no client has a finite update .* rate 0.125'
  with pytest.raises(Exception, match=message):
    process.next(state, [short, nan])
  work = process.next(state, [short, nan, client(0, 2)]).metrics['client_work']
  assert (work['participants'], work['left_out']) == (1, 2)


def test_a_round_in_which_nobody_counts(tmp_path):
  process = build(
    SCAF,
    tmp_path,
    track_all=True,
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(0.5, momentum=0.9),
  )
  state, _ = process.next(process.initialize(), [client(0), client(1)])
  files = small_models.snapshot(tmp_path)
  for nobody in ([], [client(1, 0)]):
    after, metrics = process.next(state, nobody)
    assert_same(after.global_model_weights, state.global_model_weights)
    assert_same(after.finalizer, state.finalizer)
    assert small_models.snapshot(tmp_path) == files
    assert after.client_work['round'] == 2
    work = metrics['client_work']
    assert (work['participants'], work['left_out']) == (0, len(nobody))
    assert work['train']['num_examples'] == 0
    assert metrics['finalizer']['update_norm'] == 0
    assert all(np.isfinite(value) for value in tf.nest.flatten(metrics))


def test_an_optimizer_takes_its_own_rate():
  # The first step of Yogi is smaller than its rate.
  optimizer = tff.learning.optimizers.build_yogi(0.25)
  process = build(PLAIN, client_optimizer_fn=optimizer)
  state = process.initialize()
  assert process.get_hparams(state)['learning_rate'] == 0.25
  with pytest.raises(ValueError, match='track_all'):
    learning_process.get_all_model_weights(state)
  state = process.next(state, [client(0, 1)['data']]).state
  x, y = DATA[0]
  _, (expected,) = optimizer.next(
    optimizer.initialize((tf.TensorSpec([3, 1]),)),
    (tf.zeros([3, 1]),),
    (tf.constant(-2 * x.T @ y / len(x)),),
  )
  np.testing.assert_allclose(selected(process, state), expected, rtol=1e-5)
