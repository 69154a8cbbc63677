"""Scaf: the control variates of SCAFFOLD, or PFLScaf when personalized."""

import dataclasses

import tensorflow as tf

from tff_debias.corrections import base


@dataclasses.dataclass(frozen=True)
class Scaf(base.Correction):
  """R_i(w) = c - c_i, with c_i ← c_i - c + (w^t - w_i) / (K β_t).

  The server keeps c, the mean of c_i over all clients, and broadcasts it with
  the model: two models down. As published, a client sends the change of its
  c_i with its update: two models up.

  Attributes:
    equal_steps: Whether all participants of a round take the same number K of
      local steps. The mean change of c_i is then -c - mean_S(w_i - w^t) /
      (K β_t), which the server computes itself, and only one model goes up. A
      round whose participants take different numbers of steps is an error. By
      default they may differ, and the change is sent.
    decay: γ, an option beside the published method: every round shrinks c and
      all c_i by 1 - γ, so that noise in c fades. See `Dyn`.

  Raises:
    ValueError: If `decay` is not from 0 to below 1.
  """

  equal_steps: bool = False
  decay: float = 0.0

  is_broadcast = True
  # (w^t - w_i) / (K β_t) is the mean gradient of plain SGD only.
  allows_client_optimizer = False

  def __post_init__(self):
    base.check_decay(self.decay)

  @property
  def change_is_sent(self):
    """See base class."""
    return not self.equal_steps

  def initial_state(self, weights):
    """See base class: c_i = 0."""
    return tuple(tf.zeros_like(w) for w in weights)

  def gradient_term(self, state, mean, weights, start):
    """See base class."""
    return tuple(c - c_i for c, c_i in zip(mean, state, strict=True))

  def state_change(self, state, mean, work):
    """See base class: -c - (w_i - w^t) / (K β_t)."""
    scale = work.num_steps * work.learning_rate
    return tuple(-c - u / scale for c, u in zip(mean, work.update, strict=True))
