import numpy as np
import pytest
import tensorflow as tf

from corrections import simulation
from tff_debias import corrections

SCAF = corrections.Scaf()


def test_the_formulas():
  random = np.random.RandomState(0)
  c_i, w, start, update, c = (simulation.weights(random) for _ in range(5))
  assert SCAF.allows_server_optimizer
  simulation.assert_close(SCAF.server_message(c), c)
  simulation.assert_close(
    SCAF.gradient_term(c, c_i, w, start),
    [x - y for x, y in zip(c, c_i, strict=True)],
  )
  state, message = SCAF.finish_device(c, c_i, update, 7.0, 0.2)
  # w^t - w_i is minus the update.
  expected = [
    y - x + (-u) / (7 * 0.2) for x, y, u in zip(c, c_i, update, strict=True)
  ]
  simulation.assert_close(state, expected)
  simulation.assert_close(
    message, [new - old for new, old in zip(expected, c_i, strict=True)]
  )
  # Two of eight devices, which changed by `message` on average.
  simulation.assert_close(
    SCAF.update_server(c, update, message, 2 / 8),
    [x + 2 * d / 8 for x, d in zip(c, message, strict=True)],
  )
  assert SCAF.broadcast_model(w, c) is w


def test_states_start_at_zero_in_the_shape_of_the_weights():
  weights = (tf.ones([2, 3]), tf.constant(4.0))
  for state in (
    SCAF.initial_state(weights),
    SCAF.initial_server_state(weights),
  ):
    assert [(s.shape, s.dtype) for s in state] == [
      (w.shape, w.dtype) for w in weights
    ]
    assert not any(map(np.any, state))


@pytest.mark.parametrize('decay', [1.0, 0.5])
def test_over_rounds(decay):
  zeros = [np.zeros(shape) for shape in simulation.SHAPES]
  controls, c = [zeros] * simulation.NUM_DEVICES, zeros
  for t in simulation.rounds(SCAF, decay=decay):
    # The rate of this round, and not the one of the first round.
    scale = t['num_steps'] * t['learning_rate']
    for i, update in t['updates'].items():
      controls[i] = [
        c_i - x + (-u) / scale
        for c_i, x, u in zip(controls[i], c, update, strict=True)
      ]
    c = simulation.mean(controls)
    for state, expected in zip(t['states'], controls, strict=True):
      simulation.assert_close(state, expected)
    simulation.assert_close(t['server'], c)
    simulation.assert_close(
      t['selected'],
      [
        w + u
        for w, u in zip(
          t['sent'], simulation.mean(t['updates'].values()), strict=True
        )
      ],
    )
  assert np.abs(c[0]).max() > 0.1
