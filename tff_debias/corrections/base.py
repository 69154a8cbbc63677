"""The interface of a correction: pure functions for device and server."""

import abc
from typing import Any
from typing import TypeAlias

import tensorflow as tf

#: Tensors, float32, of the shapes of the trainable weights.
Weights: TypeAlias = tuple[tf.Tensor, ...]


class Correction(abc.ABC):
  """A correction: its device state (λ_i, c_i), its server state h, its terms.

  In a round the server sends `broadcast_model` and `server_message`; a device
  takes K steps with `gradient_term` added to its gradient, then `finish_device`
  gives its new state and a message, and `update_server` takes the means.

  A state is a tuple of tensors; `()` is no state. Both start as `initial_*`.
  An implementation is a frozen dataclass of its hyperparameters, in a file of
  its own. A correction without state overrides only `gradient_term`.
  """

  #: Whether the mathematics leaves the server free to apply the mean update
  #: through an optimizer of its own.
  allows_server_optimizer: bool = True

  def initial_state(self, weights: Weights) -> tuple[tf.Tensor, ...]:
    """The state of a device that never took part, of fixed shapes."""
    del weights
    return ()

  def initial_server_state(self, weights: Weights) -> tuple[tf.Tensor, ...]:
    """The server's state h before the first round."""
    del weights
    return ()

  def broadcast_model(self, weights: Weights, server_state: Any) -> Weights:
    """The model w^t that devices start from, given the model *selected*."""
    del server_state
    return weights

  def server_message(self, server_state: Any) -> tuple[tf.Tensor, ...]:
    """What is sent to every device besides the model."""
    del server_state
    return ()

  @abc.abstractmethod
  def gradient_term(
    self,
    server_message: Any,
    device_state: Any,
    weights: Weights,
    start: Weights,
  ) -> Weights | None:
    """The term R_i(w) of a local step.

    Args:
      server_message: What `server_message` gave.
      device_state: The device's state before this round.
      weights: The weights w of this step.
      start: The broadcast model w^t.

    Returns:
      R_i(w), or `None` for 0.
    """

  def finish_device(
    self,
    server_message: Any,
    device_state: Any,
    update: Weights,
    num_steps: tf.Tensor,
    learning_rate: tf.Tensor,
  ) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
    """The device's new state, and what it sends besides its update.

    Args:
      server_message: What `server_message` gave.
      device_state: The device's state before this round.
      update: w_i - w^t.
      num_steps: The number K of steps taken, a float32 scalar.
      learning_rate: The learning rate β_t, a float32 scalar.

    Returns:
      A pair of the new state and the message, like `initial_state`.
    """
    del server_message, update, num_steps, learning_rate
    return device_state, ()

  def update_server(
    self,
    server_state: Any,
    mean_update: Weights,
    mean_message: Any,
    share: tf.Tensor,
  ) -> tuple[tf.Tensor, ...]:
    """The server's new state h.

    Args:
      server_state: The state h.
      mean_update: The mean of w_i - w^t over the participants.
      mean_message: The mean of the devices' messages over the participants.
      share: The participants' share p/m of all devices, a float32 scalar.

    Returns:
      The new state.
    """
    del mean_update, mean_message, share
    return server_state
