"""The interface of a correction, and of any state that clients keep."""

import abc
from collections.abc import Mapping
import copy
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import tensorflow as tf

from tff_debias import checks

#: Float32 tensors of the shapes of the trainable weights.
Weights: TypeAlias = tuple[tf.Tensor, ...]
#: A tuple of tensors; `()` where nothing is kept.
State: TypeAlias = tuple[tf.Tensor, ...]


class LocalWork(NamedTuple):
  """The local work of a client in a round; on the server, the mean of it.

  Attributes:
    start: The broadcast model w^t.
    update: w_i - w^t; on the server, its mean over the participants.
    num_steps: The number K of local steps, a float32 scalar.
    learning_rate: The learning rate β_t, a float32 scalar.
  """

  start: Weights
  update: Weights
  num_steps: tf.Tensor
  learning_rate: tf.Tensor


class PopulationMean:
  """A state s_i that every client keeps, and its mean s over all m clients.

  A client moves its state by its `state_change`. The server never sees a state;
  it moves the mean by (1/m) Σ_S of the participants' changes.

  With a decay γ, every round also shrinks the mean and the states of all m
  clients by 1 - γ. A client that does not take part does nothing: when it takes
  part again, n rounds after its state was written, it first multiplies the
  state by (1 - γ)^n. That is exact, because scaling commutes with the mean.

  Attributes:
    decay: γ, from 0 to below 1. It must stay the same throughout a run.
    is_broadcast: Whether clients are sent the mean s with the model.
    change_is_sent: Whether clients send their change with their update. If not,
      the server applies `state_change` to the mean update. That is exact where
      the change is an affine function of the update, the same function for all
      participants, and does not depend on the client's state.
    equal_steps: Whether `state_change` of the mean update is exact only if all
      participants take the same number K of local steps. The server then
      refuses a round in which their numbers differ.
  """

  decay: float = 0.0
  is_broadcast: bool = False
  change_is_sent: bool = True
  equal_steps: bool = False

  def aged(self, state: State, num_rounds: tf.Tensor | int) -> State:
    """A state, or the mean, after some rounds in which nothing changed it.

    Args:
      state: A state s_i, or the mean s.
      num_rounds: The number of rounds, an int32 scalar.

    Returns:
      (1 - γ)^num_rounds times the state.
    """
    if not self.decay:
      return state
    factor = tf.pow(1.0 - self.decay, tf.cast(num_rounds, tf.float32))
    return tuple(factor * tensor for tensor in state)

  def initial_state(self, weights: Weights) -> State:
    """The state of a client that never took part: by default none.

    Args:
      weights: Trainable weights, for their shapes.

    Returns:
      A tuple of tensors of fixed shapes.
    """
    del weights
    return ()

  def state_change(self, state: State, mean: State, work: LocalWork) -> State:
    """The change of a client's state by its local work: by default none.

    Args:
      state: The client's state s_i before the round. On the server (see
        `change_is_sent`), the mean.
      mean: The mean s before the round if it `is_broadcast`, else `()`.
      work: The local work.

    Returns:
      The change, like `initial_state`.
    """
    del state, mean, work
    return ()


def check_decay(decay: float) -> None:
  """Raises a `ValueError` if a decay is not from 0 to below 1."""
  checks.check_number('decay', decay)
  if decay >= 1:
    raise ValueError(f'decay must be below 1, got {decay!r}.')


class Correction(PopulationMean, abc.ABC):
  """A correction R_i(w), the term that a client adds to its gradient.

  The client's state is λ_i of Dyn or c_i of Scaf; the server keeps its mean.
  An implementation is a frozen dataclass of its hyperparameters in a file of
  its own. One without a state overrides only `gradient_term`.

  Attributes:
    hparams: The names of the fields that are hyperparameters of the learning
      process (`get_hparams`, `set_hparams`): positive float32 scalars.
    allows_server_optimizer: Whether the server may apply the mean update with
      an optimizer of its own.
    allows_client_optimizer: Whether clients may take their local steps with
      another optimizer than plain SGD.
  """

  hparams: tuple[str, ...] = ()
  allows_server_optimizer: bool = True
  allows_client_optimizer: bool = True

  @abc.abstractmethod
  def gradient_term(
    self, state: State, mean: State, weights: Weights, start: Weights
  ) -> Weights | None:
    """The term R_i(w) of a local step.

    Args:
      state: The client's state s_i before this round.
      mean: The mean s if it `is_broadcast`, else `()`.
      weights: The weights w of this step.
      start: The broadcast model w^t.

    Returns:
      R_i(w), or `None` for 0.
    """

  def broadcast_model(self, weights: Weights, mean: State) -> Weights:
    """The model w^t that clients start from: by default `weights`.

    Args:
      weights: The model *selected*, the mean of the last participants' models.
      mean: The mean s.

    Returns:
      The model w^t.
    """
    del mean
    return weights

  def with_hparams(self, hparams: Mapping[str, Any]) -> 'Correction':
    """A copy with other values, also tensors, for the fields in `hparams`."""
    result = copy.copy(self)
    for name, value in hparams.items():
      # The dataclass is frozen, and would refuse a tensor.
      object.__setattr__(result, name, value)
    return result
