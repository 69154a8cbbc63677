"""Scaf: the control variates of SCAFFOLD, or PFLScaf when personalized."""

import dataclasses

import tensorflow as tf

from tff_debias.corrections import base


@dataclasses.dataclass(frozen=True)
class Scaf(base.Correction):
  """R_i(w) = c - c_i, with c_i ← c_i - c + (w^t - w_i) / (K β_t).

  The server keeps c, the mean of c_i over all devices, and sends it with the
  model; a device sends the change of its c_i with its update: two each way.
  """

  def initial_state(self, weights):
    """See base class: c_i = 0."""
    return tuple(tf.zeros_like(w) for w in weights)

  def initial_server_state(self, weights):
    """See base class: c = 0."""
    return tuple(tf.zeros_like(w) for w in weights)

  def server_message(self, server_state):
    """See base class."""
    return server_state

  def gradient_term(self, server_message, device_state, weights, start):
    """See base class."""
    return tuple(
      c - c_i for c, c_i in zip(server_message, device_state, strict=True)
    )

  def finish_device(
    self, server_message, device_state, update, num_steps, learning_rate
  ):
    """See base class."""
    change = tuple(
      -c - u / (num_steps * learning_rate)
      for c, u in zip(server_message, update, strict=True)
    )
    new_state = tuple(
      c_i + d for c_i, d in zip(device_state, change, strict=True)
    )
    return new_state, change

  def update_server(self, server_state, mean_update, mean_message, share):
    """See base class: c ← c + (1/m) Σ_S (the change of c_i)."""
    return tuple(
      c + share * d for c, d in zip(server_state, mean_message, strict=True)
    )
