import numpy as np
import pytest

from corrections import simulation
from tff_debias import corrections


def test_the_formula():
  random = np.random.RandomState(0)
  w, start = (simulation.weights(random) for _ in range(2))
  prox = corrections.Prox(mu=0.25)
  assert prox.initial_state(w) == ()
  simulation.assert_close(
    prox.gradient_term((), (), w, start),
    [0.25 * (x - y) for x, y in zip(w, start, strict=True)],
  )


@pytest.mark.parametrize('mu', [0, -1.0, float('nan'), 'x'])
def test_wrong_strengths_are_refused(mu):
  with pytest.raises((TypeError, ValueError), match='mu must be'):
    corrections.Prox(mu)
