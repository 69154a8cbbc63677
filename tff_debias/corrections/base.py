"""The interface of a correction, and of any state that clients keep."""

import abc
from typing import NamedTuple
from typing import TypeAlias

import tensorflow as tf

#: Float32 tensors of the shapes of the trainable weights.
Weights: TypeAlias = tuple[tf.Tensor, ...]
#: A tuple of float32 tensors; `()` where nothing is kept.
State: TypeAlias = tuple[tf.Tensor, ...]


class LocalWork(NamedTuple):
  """The local work of a client in a round; on the server, the mean of it.

  Attributes:
    start: The broadcast model w^t.
    update: w_i - w^t; on the server, its mean over the participants.
    num_steps: The number K of local steps, a float32 scalar; on the server,
      `KeptState.num_steps`.
    learning_rate: The learning rate β_t, a float32 scalar.
  """

  start: Weights
  update: Weights
  num_steps: tf.Tensor
  learning_rate: tf.Tensor


class KeptState:
  """A state s_i that every client keeps, and its mean s over all m clients.

  A client moves its state by its `state_change`. The server never sees a state;
  it moves the mean by (1/m) Σ_S of the participants' changes.

  Attributes:
    is_broadcast: Whether clients are sent the mean s with the model.
    change_is_sent: Whether clients send their change with their update. Set it
      to False only if the change is the same affine function of the update for
      every participant, as in Dyn. The server then computes the mean change
      itself, by `state_change` of the mean update.
    num_steps: The number K of local steps that every participant must take, if
      the mean change is exact only then; else `None`.
  """

  is_broadcast: bool = False
  change_is_sent: bool = True
  num_steps: int | None = None

  @property
  def is_kept(self) -> bool:
    """Whether a client keeps anything, by an `initial_state` of its own."""
    return type(self).initial_state is not KeptState.initial_state

  def initial_state(self, weights: Weights) -> State:
    """The state of a client that never took part: by default none.

    Args:
      weights: Trainable weights, for their shapes.

    Returns:
      A tuple of tensors of fixed shapes.
    """
    del weights
    return ()

  def state_change(
    self, state: State, mean_state: State, work: LocalWork
  ) -> State:
    """The change of a client's state by its local work: by default none.

    Args:
      state: The client's state s_i before the round. On the server (see
        `change_is_sent`), the mean.
      mean_state: The mean s before the round if it `is_broadcast`, else `()`.
      work: The local work.

    Returns:
      The change, like `initial_state`.
    """
    del state, mean_state, work
    return ()


class Correction(KeptState, abc.ABC):
  """A correction R_i(w), the term that a client adds to its gradient.

  The client's state is λ_i of Dyn or c_i of Scaf; the server keeps its mean.
  An implementation is a frozen dataclass of its hyperparameters in a file of
  its own. One without a state overrides only `gradient_term`.

  Attributes:
    allows_server_optimizer: Whether the server may apply the mean update with
      an optimizer of its own.
    allows_client_optimizer: Whether clients may take their local steps with
      another optimizer than plain SGD.
  """

  allows_server_optimizer: bool = True
  allows_client_optimizer: bool = True

  @abc.abstractmethod
  def gradient_term(
    self, state: State, mean_state: State, weights: Weights, start: Weights
  ) -> Weights | None:
    """The term R_i(w) of a local step.

    Args:
      state: The client's state s_i before this round.
      mean_state: The mean s if it `is_broadcast`, else `()`.
      weights: The weights w of this step.
      start: The broadcast model w^t.

    Returns:
      R_i(w), or `None` for 0.
    """

  def broadcast_model(self, weights: Weights, mean_state: State) -> Weights:
    """The model w^t that clients start from: by default `weights`.

    Args:
      weights: The model *selected*, the mean of the last participants' models.
      mean_state: The mean s.

    Returns:
      The model w^t.
    """
    del mean_state
    return weights
