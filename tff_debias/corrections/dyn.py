"""Dyn: the dynamic regularizer of FedDyn, or PFLDyn when personalized."""

import dataclasses

import tensorflow as tf

from tff_debias import checks
from tff_debias.corrections import base


@dataclasses.dataclass(frozen=True)
class Dyn(base.Correction):
  """R_i(w) = -λ_i + α (w - w^t), with λ_i ← λ_i - α (w_i - w^t).

  The server keeps h, the mean of λ_i over all clients: h ← h - (α/m) Σ_S
  (w_i - w^t), and broadcasts w^{t+1} = mean_S w_i - h/α. A round sends one
  model down and one up, as FedAvg does.

  Attributes:
    alpha: The strength α of the regularizer. The paper takes 1e-2 for MAML and
      1e-1 for prototypes.

  Raises:
    ValueError: If `alpha` is not a positive finite number.
  """

  alpha: float

  change_is_sent = False
  allows_server_optimizer = False

  def __post_init__(self) -> None:
    checks.check_number('alpha', self.alpha, positive=True)

  def initial_state(self, weights):
    """See base class: λ_i = 0."""
    return tuple(tf.zeros_like(w) for w in weights)

  def gradient_term(self, state, mean_state, weights, start):
    """See base class."""
    return tuple(
      self.alpha * (w - w_start) - lam
      for lam, w, w_start in zip(state, weights, start, strict=True)
    )

  def state_change(self, state, mean_state, work):
    """See base class: -α (w_i - w^t)."""
    return tuple(-self.alpha * u for u in work.update)

  def broadcast_model(self, weights, mean_state):
    """See base class: w^t = mean_S w_i - h/α."""
    return tuple(
      w - h / self.alpha for w, h in zip(weights, mean_state, strict=True)
    )
