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
  equal = corrections.Scaf(num_steps=7)
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


@pytest.mark.parametrize('num_steps', [0, -1, 2.5, True, 'x'])
def test_wrong_numbers_of_steps_are_refused(num_steps):
  with pytest.raises(ValueError, match='num_steps of Scaf must be'):
    corrections.Scaf(num_steps)
