"""Dyn: the dynamic regularizer of FedDyn, or PFLDyn when personalized."""

import dataclasses
import math
import numbers

import tensorflow as tf

from tff_debias.corrections import base


@dataclasses.dataclass(frozen=True)
class Dyn(base.Correction):
  """R_i(w) = -λ_i + α (w - w^t), with λ_i ← λ_i - α (w_i - w^t).

  The server keeps h, the mean of λ_i over all devices, and sends
  w^{t+1} = mean_S w_i - h/α. Nothing but models is sent.

  Attributes:
    alpha: The strength α of the regularizer. The paper takes 1e-2 for MAML and
      1e-1 for prototypes.

  Raises:
    ValueError: If `alpha` is not a positive finite number.
  """

  alpha: float

  allows_server_optimizer = False

  def __post_init__(self):
    is_number = isinstance(self.alpha, numbers.Real)
    if not is_number or not 0 < self.alpha < math.inf:
      raise ValueError(f'α must be positive and finite, got {self.alpha!r}.')

  def initial_state(self, weights):
    """See base class: λ_i = 0."""
    return tuple(tf.zeros_like(w) for w in weights)

  def initial_server_state(self, weights):
    """See base class: h = 0."""
    return tuple(tf.zeros_like(w) for w in weights)

  def broadcast_model(self, weights, server_state):
    """See base class: w^t = mean_S w_i - h/α."""
    return tuple(
      w - h / self.alpha for w, h in zip(weights, server_state, strict=True)
    )

  def gradient_term(self, server_message, device_state, weights, start):
    """See base class."""
    return tuple(
      self.alpha * (w - w_start) - lam
      for lam, w, w_start in zip(device_state, weights, start, strict=True)
    )

  def finish_device(
    self, server_message, device_state, update, num_steps, learning_rate
  ):
    """See base class."""
    new_state = tuple(
      lam - self.alpha * u for lam, u in zip(device_state, update, strict=True)
    )
    return new_state, ()

  def update_server(self, server_state, mean_update, mean_message, share):
    """See base class: h ← h - (α/m) Σ_S (w_i - w^t)."""
    return tuple(
      h - self.alpha * share * u
      for h, u in zip(server_state, mean_update, strict=True)
    )
