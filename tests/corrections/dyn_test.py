import numpy as np
import pytest

from corrections import simulation
from tff_debias import corrections


def test_the_formulas():
  random = np.random.RandomState(0)
  lam, w, start, update, h = (simulation.weights(random) for _ in range(5))
  dyn = corrections.Dyn(alpha=0.25)
  assert not dyn.allows_server_optimizer
  assert not dyn.is_broadcast and not dyn.change_is_sent
  simulation.assert_close(
    dyn.gradient_term(lam, (), w, start),
    [
      -lam_l + 0.25 * (w_l - start_l)
      for lam_l, w_l, start_l in zip(lam, w, start, strict=True)
    ],
  )
  simulation.assert_close(
    dyn.state_change(lam, (), simulation.work(update, 7.0, 0.1)),
    [-0.25 * u for u in update],
  )
  simulation.assert_close(
    dyn.broadcast_model(w, h), [x - y / 0.25 for x, y in zip(w, h, strict=True)]
  )


def test_states_start_at_zero_in_the_shape_of_the_weights():
  simulation.assert_starts_at_zero(corrections.Dyn(1.0))


@pytest.mark.parametrize('alpha', [0.0, -1.0, float('nan'), float('inf'), 'a'])
def test_alpha_must_be_positive(alpha):
  with pytest.raises(ValueError, match='alpha must be a positive finite'):
    corrections.Dyn(alpha)
