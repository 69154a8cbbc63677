import numpy as np
import pytest
import tensorflow as tf

from corrections import simulation
from tff_debias import corrections


def test_the_formulas():
  random = np.random.RandomState(0)
  lam, w, start, update, h = (simulation.weights(random) for _ in range(5))
  dyn = corrections.Dyn(alpha=0.25)
  assert not dyn.allows_server_optimizer
  assert dyn.server_message(h) == ()
  simulation.assert_close(
    dyn.gradient_term((), lam, w, start),
    [
      -lam_l + 0.25 * (w_l - start_l)
      for lam_l, w_l, start_l in zip(lam, w, start, strict=True)
    ],
  )
  state, message = dyn.finish_device((), lam, update, 7.0, 0.1)
  assert message == ()
  simulation.assert_close(
    state, [x - 0.25 * u for x, u in zip(lam, update, strict=True)]
  )
  simulation.assert_close(
    dyn.broadcast_model(w, h), [x - y / 0.25 for x, y in zip(w, h, strict=True)]
  )
  # Two of eight devices.
  simulation.assert_close(
    dyn.update_server(h, update, (), 2 / 8),
    [x - 0.25 / 8 * 2 * u for x, u in zip(h, update, strict=True)],
  )


def test_states_start_at_zero_in_the_shape_of_the_weights():
  weights = (tf.ones([2, 3]), tf.constant(4.0))
  dyn = corrections.Dyn(1.0)
  for state in (
    dyn.initial_state(weights),
    dyn.initial_server_state(weights),
  ):
    assert [(s.shape, s.dtype) for s in state] == [
      (w.shape, w.dtype) for w in weights
    ]
    assert not any(map(np.any, state))


@pytest.mark.parametrize('decay', [1.0, 0.5])
def test_over_rounds(decay):
  alpha = 0.3
  lambdas = [[np.zeros(s) for s in simulation.SHAPES]] * simulation.NUM_DEVICES
  last = None
  for t in simulation.rounds(corrections.Dyn(alpha), decay=decay):
    if last:
      # w^{t+1} = mean_S w_i - (1/α) mean_{all m} λ_i
      simulation.assert_close(
        t['sent'],
        [
          w - lam / alpha
          for w, lam in zip(
            last['selected'], simulation.mean(lambdas), strict=True
          )
        ],
      )
    for i, update in t['updates'].items():
      lambdas[i] = [
        lam - alpha * u for lam, u in zip(lambdas[i], update, strict=True)
      ]
    for state, expected in zip(t['states'], lambdas, strict=True):
      simulation.assert_close(state, expected)
    simulation.assert_close(t['server'], simulation.mean(lambdas))
    last = t
  assert np.abs(last['server'][0]).max() > 0.01


@pytest.mark.parametrize('alpha', [0.0, -1.0, float('nan'), float('inf')])
def test_alpha_must_be_positive(alpha):
  with pytest.raises(ValueError, match='α must be positive and finite'):
    corrections.Dyn(alpha)
