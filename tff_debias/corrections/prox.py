"""Prox: the proximal term of FedProx, a baseline without a state."""

import dataclasses

from tff_debias import checks
from tff_debias.corrections import base


@dataclasses.dataclass(frozen=True)
class Prox(base.Correction):
  """R_i(w) = μ (w - w^t): clients stay near the broadcast model.

  It bounds how far clients drift, and does not remove the bias.

  Attributes:
    mu: The strength μ.

  Raises:
    ValueError: If `mu` is not a positive finite number.

  References:
    Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020,
    https://arxiv.org/abs/1812.06127
  """

  mu: float

  def __post_init__(self) -> None:
    checks.check_number('mu', self.mu, positive=True)

  def gradient_term(self, state, mean_state, weights, start):
    """See base class."""
    return tuple(
      self.mu * (w - w_start) for w, w_start in zip(weights, start, strict=True)
    )
