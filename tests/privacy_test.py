"""Clipping, noise and secure sums, with states that stay in step."""

import math

import dp_accounting
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import aggregation
from tff_debias import corrections
from tff_debias import privacy
from tff_debias import storage as storage_lib

DYN = corrections.Dyn(alpha=0.5)
SECURE_METRICS = tff.learning.metrics.secure_sum_then_finalize


build = small_models.linear_process
client = small_models.linear_client


def mean_of_states(folder, state):
  """The mean of all five clients' λ_i or c_i."""
  states = []
  for i in range(5):
    (kept,), *_ = storage_lib.ClientStorage(folder).read(
      storage_lib.Lineage(
        *(tf.constant(value) for value in state.client_work['lineage'])
      ),
      tf.constant(f'client {i}'),
      [tf.zeros([3, 1])],
    )
    states.append(np.float64(kept))
  return np.mean(states, axis=0)


def rounds(process, count, size=2, seed=0):
  """States after rounds of different participants, with their metrics."""
  random = np.random.RandomState(seed)
  state = process.initialize()
  for _ in range(count):
    chosen = random.permutation(5)[:size]
    state, metrics = process.next(state, [client(i) for i in chosen])
    yield state, metrics, chosen


@pytest.mark.slow
@pytest.mark.usefixtures('runtime')
def test_noise_moves_the_mean_of_the_states_by_a_random_walk(tmp_path):
  noise, alpha = 2.0, 0.5
  process = build(
    corrections.Dyn(alpha),
    tmp_path,
    model_aggregator=privacy.dp_aggregator(noise, 2, 1.0),
  )
  errors = [
    state.finalizer['mean_states'][0][0] - mean_of_states(tmp_path, state)
    for state, _, _ in rounds(process, 40)
  ]
  # Three numbers a round.
  steps = np.diff([np.zeros([3, 1]), *errors], axis=0)
  step = alpha * noise / 5
  assert step * 0.75 < steps.std() < step * 1.25
  # No noise is used twice, whatever the program's seed.
  assert len({float(value) for value in steps.flat}) == steps.size


def assert_clips_before_a_state_changes(process, folder, bound, change):
  """Given the change of a state by an update of the norm 1."""
  state, metrics = process.next(process.initialize(), [client(0)])
  # The first round: nothing else than the bound can have this norm.
  assert abs(metrics['finalizer']['update_norm'] - bound) < 1e-6
  (mean,) = state.finalizer['mean_states'][0]
  assert abs(np.linalg.norm(mean) - change * bound / 5) < 1e-6
  *_, (state, _, _) = rounds(process, 4, seed=1)
  assert_in_step(state, folder)


def assert_in_step(state, folder):
  """The server's h or c is the mean of the clients' λ_i or c_i."""
  np.testing.assert_allclose(
    state.finalizer['mean_states'][0][0],
    mean_of_states(folder, state),
    rtol=0,
    atol=1e-6,
  )


@pytest.mark.slow
@pytest.mark.usefixtures('runtime')
def test_a_fixed_denominator_is_of_the_model_only(tmp_path):
  """Two take part where four are planned, without noise."""
  correction = corrections.Scaf(num_steps=3)
  planned = build(
    correction,
    tmp_path / 'planned',
    model_aggregator=privacy.dp_aggregator(0.0, 4, 0.05),
  )
  plain = build(correction, tmp_path / 'plain', max_update_norm=0.05)
  # A step of c_i divides by 3 steps of 0.1.
  assert_clips_before_a_state_changes(
    plain, tmp_path / 'plain', 0.05, 1 / (3 * 0.1)
  )
  clients = [client(0), client(1), client(2, 0)]
  (state, _), (other, _) = (
    process.next(process.initialize(), clients) for process in (planned, plain)
  )
  np.testing.assert_allclose(
    planned.get_model_weights(state).trainable[0],
    plain.get_model_weights(other).trainable[0] * 2 / 4,
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    state.finalizer['mean_states'][0][0],
    other.finalizer['mean_states'][0][0],
    rtol=1e-6,
  )
  for state, _, _ in rounds(planned, 6):
    assert_in_step(state, tmp_path / 'planned')


class GeometricMedianFactory(tff.aggregators.UnweightedMeanFactory):
  """Somebody's own aggregator, which nobody else knows."""


# Each with what is named in the message.
_AGGREGATORS = tff.aggregators
INEXACT = {
  'RobustFactory': tff.learning.robust_aggregator(zeroing=False),
  'WeightedRobust': tff.learning.robust_aggregator(clipping=False),
  'UnweightedRobust': _AGGREGATORS.concat_factory(
    tff.learning.dp_aggregator(1.0, 100.0)
  ),
  'DifferentiallyPrivate': (
    _AGGREGATORS.DifferentiallyPrivateFactory.gaussian_fixed(1.0, 3.0, 1.0)
  ),
  'SecureSum': tff.learning.secure_aggregator(zeroing=False, clipping=False),
  'GeometricMedian': GeometricMedianFactory(),
}


@pytest.mark.parametrize('name', INEXACT)
def test_an_aggregator_that_may_change_an_update_is_refused(tmp_path, name):
  for correction, track_all in (
    (DYN, False),
    (corrections.NoCorrection(), True),
  ):
    with pytest.raises(ValueError, match=f'{name}.*clipping=False.*is_exact'):
      build(
        correction,
        tmp_path,
        track_all=track_all,
        model_aggregator=INEXACT[name],
      )


def test_an_exact_aggregator_is_allowed():
  class OwnMean(GeometricMedianFactory):
    is_exact_mean = True

  for factory in (
    None,
    OwnMean(),
    _AGGREGATORS.UnweightedMeanFactory(),
    _AGGREGATORS.MeanFactory(
      _AGGREGATORS.HadamardTransformFactory(_AGGREGATORS.SumFactory())
    ),
    _AGGREGATORS.concat_factory(
      tff.learning.robust_aggregator(
        zeroing=False,
        clipping=False,
        debug_measurements_fn=tff.learning.add_debug_measurements,
      )
    ),
    tff.learning.compression_aggregator(zeroing=False, clipping=False),
    privacy.secure_aggregator(1.0),
  ):
    aggregation.check_exact(factory, False, 'Dyn')


@pytest.mark.parametrize(
  'factory',
  [
    tff.aggregators.SumFactory(),
    tff.aggregators.SecureSumFactory(1.0),
    tff.aggregators.EncodedSumFactory.quantize_above_threshold(8),
  ],
)
def test_a_sum_is_refused(factory):
  with pytest.raises(ValueError, match=f'{type(factory).__name__} makes a sum'):
    build(corrections.NoCorrection(), model_aggregator=factory)


@pytest.mark.parametrize(
  'correction, track_all', [(corrections.Scaf(), False), (DYN, True)]
)
def test_more_than_a_bounded_update_is_refused(tmp_path, correction, track_all):
  for factory in (
    privacy.dp_aggregator(1.0, 2, 1.0),
    privacy.secure_aggregator(1.0),
  ):
    with pytest.raises(ValueError, match='sends more than the update'):
      build(correction, tmp_path, track_all=track_all, model_aggregator=factory)


@pytest.mark.slow
@pytest.mark.usefixtures('runtime')
def test_errors_of_a_compression_stay_small(tmp_path):
  compression = tff.aggregators.EncodedSumFactory.quantize_above_threshold(
    8, threshold=0
  )
  process = build(
    DYN,
    tmp_path,
    model_aggregator=tff.aggregators.UnweightedMeanFactory(compression),
    learning_rate=0.01,
  )
  largest = 0.0
  for state, _, _ in rounds(process, 50):
    (mean,) = state.finalizer['mean_states'][0]
    largest = max(largest, np.linalg.norm(mean))
  error = np.linalg.norm(mean - mean_of_states(tmp_path, state))
  print(f'‖h - mean λ_i‖ {error:.2e}, ‖h‖ at most {largest:.2e}')
  assert 0 < error < 0.02 * largest


def epsilon_by_hand(noise, rate, num_rounds, delta):
  """RDP of the Poisson-sampled Gaussian (Mironov et al.), by integration."""
  best = math.inf
  for order in np.arange(1.1, 64, 0.1):
    x = np.linspace(-20 * noise, order + 20 * noise, 20001)
    density = -(x**2) / (2 * noise**2) - 0.5 * math.log(2 * math.pi * noise**2)
    ratio = np.logaddexp(
      math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2)
    )
    moment = np.logaddexp.reduce(density + order * ratio)
    rdp = num_rounds * (moment + math.log(x[1] - x[0])) / (order - 1)
    epsilon = (
      rdp
      + math.log1p(-1 / order)
      - (math.log(delta) + math.log(order)) / (order - 1)
    )
    best = min(best, epsilon)
  return best


def exact_epsilon(event, num_rounds, delta):
  """By the distribution of the privacy loss, a little above."""
  exact = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
  return exact.compose(event, num_rounds).get_epsilon(delta)


def test_what_is_spent_is_that_of_the_accountant_by_hand():
  delta = 1e-5
  for noise, num_rounds in ((1.0, 100), (0.6, 10)):
    epsilon, same_delta = privacy.privacy_spent(
      privacy.dp_aggregator(noise, 50, 0.3),
      num_rounds,
      num_clients=1000,
      delta=delta,
      sampling='poisson',
    )
    assert same_delta == delta
    by_hand = epsilon_by_hand(noise, 0.05, num_rounds, delta)
    assert epsilon == pytest.approx(by_hand, rel=2e-3)
    # And it is not below the exact loss.
    event = dp_accounting.PoissonSampledDpEvent(
      0.05, dp_accounting.GaussianDpEvent(noise)
    )
    assert epsilon > exact_epsilon(event, num_rounds, delta) - 1e-3


def test_unsampled_and_replaced_clients_count():
  def spent(clients_per_round, sampling):
    return privacy.privacy_spent(
      privacy.dp_aggregator(1.0, clients_per_round, 0.3),
      20,
      num_clients=100,
      delta=1e-5,
      sampling=sampling,
    )[0]

  assert spent(10, 'poisson') < spent(10, 'fixed_size') < spent(10, 'unknown')
  # Without sampling: 20 Gaussians are one, whose ε is known exactly. All
  # clients in every round, one replaced: twice the change of the sum.
  for epsilon, noise in (
    (spent(10, 'unknown'), 1.0),
    (spent(100, 'fixed_size'), 0.5),
  ):
    exact = exact_epsilon(dp_accounting.GaussianDpEvent(noise), 20, 1e-5)
    assert exact < epsilon < 1.1 * exact


def test_nothing_is_spent_before_the_first_round_and_all_without_noise():
  arguments = dict(num_clients=5, delta=1e-5)
  for noise, num_rounds, epsilon in (
    (1.0, 0, 0),
    (0.0, 0, 0),
    (0.0, 1, np.inf),
  ):
    found = privacy.privacy_spent(
      privacy.dp_aggregator(noise, 2, 0.3), num_rounds, **arguments
    )
    assert found == (epsilon, 1e-5)


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'delta': 1.0}, 'delta must be below 1'),
    ({'sampling': 'uniform'}, 'sampling must be one of'),
    ({'num_clients': 1}, 'num_clients must be at least 2, got 1'),
    ({'num_rounds': -1}, 'num_rounds must be at least 0'),
    (
      {'aggregator': privacy.secure_aggregator(1.0)},
      'must be a dp_aggregator.*got BoundedMeanFactory',
    ),
  ],
)
def test_what_cannot_be_accounted_for_is_refused(wrong, message):
  arguments = {
    'aggregator': privacy.dp_aggregator(1.5, 2, 0.3),
    'num_rounds': 3,
    'num_clients': 5,
    'delta': 1e-5,
  }
  with pytest.raises(ValueError, match=message):
    privacy.privacy_spent(**{**arguments, **wrong})


@pytest.mark.slow
def test_nothing_leaves_a_client_in_the_clear(tmp_path):
  process = build(
    corrections.Scaf(num_steps=3),
    tmp_path,
    model_aggregator=privacy.dp_aggregator(1.0, 2, 1.0, secure=True),
    metrics_aggregator=SECURE_METRICS,
  )
  tff.test.assert_not_contains_unsecure_aggregation(process.next)


@pytest.mark.slow
@pytest.mark.usefixtures('runtime')
def test_secure_sums_give_the_same_numbers(tmp_path):
  runs = {}
  for name, options in {
    'plain': dict(max_update_norm=0.05),
    'secure': dict(
      model_aggregator=privacy.secure_aggregator(0.05),
      metrics_aggregator=SECURE_METRICS,
    ),
  }.items():
    model = small_models.linear_model(
      metrics=lambda: [tf.keras.metrics.MeanAbsoluteError('error')]
    )
    process = build(DYN, tmp_path / name, model=model, **options)
    if name == 'secure':
      tff.test.assert_not_contains_unsecure_aggregation(process.next)
    else:
      assert_clips_before_a_state_changes(
        process, tmp_path / name, 0.05, DYN.alpha
      )
    runs[name] = []
    for state, metrics, _ in rounds(process, 2):
      work = metrics['client_work']
      exact = [
        *process.get_model_weights(state).trainable[0].flat,
        *state.finalizer['mean_states'][0][0].flat,
      ]
      counted = [
        *(work['participants'], work['left_out'], work['correction_norm']),
        *(work['train'][key] for key in ('loss', 'error', 'num_examples')),
        state.client_work['lineage'].num_clients,
      ]
      runs[name].append((exact, counted))
    assert_in_step(state, tmp_path / name)
  for plain, secure in zip(runs['plain'], runs['secure'], strict=True):
    np.testing.assert_allclose(plain[0], secure[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(plain[1], secure[1], rtol=0, atol=2e-4)
