"""Scaf: the control variates of SCAFFOLD, or PFLScaf when personalized."""

import dataclasses

import tensorflow as tf

from tff_debias import checks
from tff_debias.corrections import base


@dataclasses.dataclass(frozen=True)
class Scaf(base.Correction):
  """R_i(w) = c - c_i, with c_i ← c_i - c + (w^t - w_i) / (K β_t).

  The server keeps c, the mean of c_i over all clients, and broadcasts it with
  the model: two models down. As published, a client sends the change of its
  c_i with its update: two models up.

  Attributes:
    num_steps: The number K of local steps, if all participants take the same.
      The mean change of c_i is then -c - mean_S(w_i - w^t) / (K β_t), which the
      server computes itself, and only one model goes up. A participant that
      takes another number of steps is an error. By default the numbers may
      differ, and the change is sent.

  Raises:
    ValueError: If `num_steps` is not a positive integer.
  """

  num_steps: int | None = None

  is_broadcast = True
  # (w^t - w_i) / (K β_t) is the mean gradient of plain SGD only.
  allows_client_optimizer = False

  def __post_init__(self) -> None:
    if self.num_steps is not None:
      checks.check_integer('num_steps of Scaf', self.num_steps)

  @property
  def change_is_sent(self) -> bool:  # type: ignore[override]  # Fixed there.
    """See base class."""
    return self.num_steps is None

  def initial_state(self, weights):
    """See base class: c_i = 0."""
    return tuple(tf.zeros_like(w) for w in weights)

  def gradient_term(self, state, mean_state, weights, start):
    """See base class."""
    return tuple(c - c_i for c, c_i in zip(mean_state, state, strict=True))

  def state_change(self, state, mean_state, work):
    """See base class: -c - (w_i - w^t) / (K β_t)."""
    scale = work.num_steps * work.learning_rate
    return tuple(
      -c - u / scale for c, u in zip(mean_state, work.update, strict=True)
    )
