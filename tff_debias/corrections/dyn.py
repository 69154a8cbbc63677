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

  A decay γ is an option that the paper's method does not have: every round
  multiplies h and all λ_i by 1 - γ. Noise in the mean update enters h, but no
  λ_i. Without a decay it adds up. With a decay it fades: noise of variance σ²
  in each round leaves a variance of at most α² (p/m)² σ² / (2γ - γ²) in h, for
  p participants of m clients.

  The λ_i fade too. γ is a decay a round, and a client takes part about once in
  m/p rounds, so between two turns its λ_i keeps about (1 - γ)^(m/p) of itself:
  37 % for γ = p/m. A γ near p/m leaves little of the correction, so γ should be
  well below p/m.

  Attributes:
    alpha: The strength α of the regularizer, a hyperparameter of the process.
      The paper takes 1e-2 for MAML and 1e-1 for prototypes.
    decay: γ, the same throughout a run.

  Raises:
    ValueError: If `alpha` is not a positive finite number, or `decay` not from
      0 to below 1.
  """

  alpha: float
  decay: float = 0.0

  hparams = ('alpha',)
  change_is_sent = False
  allows_server_optimizer = False

  def __post_init__(self):
    checks.check_number('alpha', self.alpha, positive=True)
    base.check_decay(self.decay)

  def initial_state(self, weights):
    """See base class: λ_i = 0."""
    return tuple(tf.zeros_like(w) for w in weights)

  def gradient_term(self, state, mean, weights, start):
    """See base class."""
    return tuple(
      self.alpha * (w - w_start) - lam
      for lam, w, w_start in zip(state, weights, start, strict=True)
    )

  def state_change(self, state, mean, work):
    """See base class: -α (w_i - w^t)."""
    return tuple(-self.alpha * u for u in work.update)

  def broadcast_model(self, weights, mean):
    """See base class: w^t = mean_S w_i - h/α."""
    return tuple(w - h / self.alpha for w, h in zip(weights, mean, strict=True))
