import numpy as np
import pytest

from corrections import simulation
from tff_debias import corrections

SCAF = corrections.Scaf()


def test_the_formulas():
  random = np.random.RandomState(0)
  c_i, w, start, update, c = (simulation.weights(random) for _ in range(5))
  assert SCAF.allows_server_optimizer
  assert SCAF.is_broadcast and SCAF.change_is_sent
  equal = corrections.Scaf(equal_steps=True)
  assert equal.is_broadcast and not equal.change_is_sent
  simulation.assert_close(
    SCAF.gradient_term(c_i, c, w, start),
    [x - y for x, y in zip(c, c_i, strict=True)],
  )
  change = SCAF.state_change(c_i, c, simulation.work(update, 7.0, 0.2))
  # w^t - w_i is minus the update.
  expected = [
    y - x + (-u) / (7 * 0.2) for x, y, u in zip(c, c_i, update, strict=True)
  ]
  simulation.assert_close(
    change, [new - old for new, old in zip(expected, c_i, strict=True)]
  )
  assert SCAF.broadcast_model(w, c) is w


def test_states_start_at_zero_in_the_shape_of_the_weights():
  simulation.assert_starts_at_zero(SCAF)


@pytest.mark.parametrize('decay', [1.0, 0.5])
@pytest.mark.parametrize('equal_steps', [False, True])
def test_over_rounds(decay, equal_steps):
  zeros = [np.zeros(shape) for shape in simulation.SHAPES]
  controls, c = [zeros] * simulation.NUM_CLIENTS, zeros
  for t in simulation.rounds(
    corrections.Scaf(equal_steps), decay=decay, equal_steps=equal_steps
  ):
    for i, update in t['updates'].items():
      # The rate of this round, and not the one of the first round.
      scale = t['steps'][i] * t['learning_rate']
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
