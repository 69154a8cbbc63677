"""Algorithm 1 of Acar et al. (ICML 2021), as pure functions of tensors.

Round t, with m clients, the participants S, and the meta-loss f_i(w) =
L_i(T_i(w)) of a personalization T_i:

    server    broadcast      sends w^t, β_t and, for Scaf, c
    client i  client_init    w = w^t
              client_step    K times w ← w - β_t (clip(∇f_i(w) + R_i(w)) + wd w)
              client_final   w_i = w; sends w_i - w^t; keeps its new λ_i or c_i
    server    server_update  mean_S w_i, and the mean of λ_i or c_i over all m

Two options are not in the paper. With `max_update_norm`, a client clips
w_i - w^t before it sends it and before it computes its new λ_i or c_i. So its
own state moves by the same update that the server gets. A correction's `decay`
shrinks λ_i or c_i of all clients, and their mean, in every round.

`learning_process.py` places these functions at the server and the clients.
"""

import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import corrections
from tff_debias import loops
from tff_debias import models
from tff_debias import personalizations

Weights = corrections.Weights
_SGD = tff.learning.optimizers.build_sgdm()
#: A tensor structure for each of `Algorithm.memories`.
Memories = tuple[corrections.State, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Algorithm:
  """A method: what stays the same in all rounds.

  Attributes:
    model: The model, with its loss L.
    personalization: The personalization T_i.
    correction: The correction R_i.
    max_grad_norm: The bound on the norm of the corrected gradient, all layers
      together; `math.inf` for none.
    track_all: Whether the model *all* is kept too.
    client_optimizer: Takes the local steps, with the learning rate β_t; the
      paper's plain SGD by default.
    server_optimizer: Applies -mean_S (w_i - w^t) to w^t as a gradient. `None`
      takes mean_S w_i, as the paper does.
    max_update_norm: The bound C on the norm of a client's update: w_i is
      w^t + u min(1, C / ‖u‖) for the update u of its local steps. `math.inf`
      for none.
  """

  model: models.Model
  personalization: personalizations.Personalization
  correction: corrections.Correction
  max_grad_norm: float
  track_all: bool = False
  client_optimizer: tff.learning.optimizers.Optimizer = _SGD
  server_optimizer: tff.learning.optimizers.Optimizer | None = None
  max_update_norm: float = math.inf

  @property
  def memories(self) -> tuple[corrections.PopulationMean, ...]:
    """All that a client keeps: λ_i or c_i, and its newest w_i."""
    return (self.correction, *[corrections.NewestModel()] * self.track_all)


class ServerState(NamedTuple):
  """What the server remembers from round to round.

  Attributes:
    weights: The model *selected*, mean_S w_i of the last round.
    means: The means of the clients' states over the population.
    optimizer: The state of the server's optimizer, `()` without one.
  """

  weights: Weights
  means: Memories
  optimizer: Any


class Broadcast(NamedTuple):
  """What every participant of a round receives.

  Attributes:
    model: The model w^t.
    means: The means that clients need, such as c of Scaf; `()` for others.
    learning_rate: β_t, a float32 scalar.
    weight_decay: wd, a float32 scalar.
  """

  model: models.ModelWeights
  means: Memories
  learning_rate: tf.Tensor
  weight_decay: tf.Tensor


class ClientState(NamedTuple):
  """A client between two local steps.

  Attributes:
    weights: w.
    optimizer: The state of the client's optimizer.
    num_steps: The number of steps taken, a float32 scalar.
    loss_sum: The sum of the loss over the examples that counted.
    num_examples: Their number, a float32 scalar.
    metrics: The unfinalized metrics over the same examples.
  """

  weights: Weights
  optimizer: Any
  num_steps: tf.Tensor
  loss_sum: tf.Tensor
  num_examples: tf.Tensor
  metrics: Any


class ClientUpdate(NamedTuple):
  """What a client's round leads to.

  Attributes:
    is_included: Whether the client took a step and its result is finite, a bool
      scalar. If not, it counts in no mean and keeps its old states; all other
      attributes are 0.
    update: w_i - w^t.
    client_message: The changes of its states that are sent; `()` for others.
    memories: Its new states.
    sums: Its last `ClientState`, of which only the number of steps, the loss,
      the examples and the metrics are kept.
  """

  is_included: tf.Tensor
  update: Weights
  client_message: Memories
  memories: Memories
  sums: ClientState


class Participants(NamedTuple):
  """The aggregated updates of a round's participants.

  Attributes:
    mean_update: mean_S (w_i - w^t).
    mean_message: The mean of the client messages.
    share: p/m, the participants' share of all clients, a float32 scalar.
    num_steps: The mean number K of local steps, a float32 scalar.
    turnout: 1, or p over the planned number of participants where the model
      moves by the sum of the updates over that fixed number, as differential
      privacy needs it. The means over all m clients move by the true sum.
  """

  mean_update: Weights
  mean_message: Memories
  share: tf.Tensor
  num_steps: tf.Tensor
  turnout: tf.Tensor | float = 1.0


def initial_memories(algorithm: Algorithm, weights: Weights) -> Memories:
  """The states of a client that never took part, and so their first means."""
  return tuple(memory.initial_state(weights) for memory in algorithm.memories)


def aged(
  algorithm: Algorithm, memories: Memories, num_rounds: tf.Tensor | int
) -> Memories:
  """States, or their means, after rounds that only let them decay."""
  return tuple(
    memory.aged(state, num_rounds)
    for memory, state in zip(algorithm.memories, memories, strict=True)
  )


def broadcast(
  algorithm: Algorithm,
  state: ServerState,
  non_trainable: Weights,
  learning_rate: tf.Tensor,
  weight_decay: tf.Tensor,
) -> Broadcast:
  """The server sends w^t: mean_S w_i, or mean_S w_i - h/α for Dyn; and c."""
  model = algorithm.correction.broadcast_model(state.weights, state.means[0])
  means = tuple(
    mean if memory.is_broadcast else ()
    for memory, mean in zip(algorithm.memories, state.means, strict=True)
  )
  model = models.ModelWeights(model, non_trainable)
  return Broadcast(model, means, learning_rate, weight_decay)


def client_update(
  algorithm: Algorithm,
  received: Broadcast,
  memories: Memories,
  dataset: tf.data.Dataset,
) -> ClientUpdate:
  """The client's round, from its states λ_i or c_i and its batches.

  Args:
    algorithm: The method.
    received: The server's broadcast.
    memories: The client's states before the round, `aged` by the rounds since
      they were written.
    dataset: Batches. Without personalization each one makes a local step; with
      one, every two are its support A_k and its query B_k. A rest is not used.

  Returns:
    The client's update.
  """
  final = loops.reduce_batches(
    dataset,
    client_init(algorithm, received),
    functools.partial(client_step, algorithm, received, memories),
    algorithm.personalization.batches_per_step,
  )
  return client_final(algorithm, received, memories, final)


def client_init(algorithm: Algorithm, received: Broadcast) -> ClientState:
  """The client starts from w = w^t."""
  start = tuple(received.model.trainable)
  specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, start)
  optimizer = algorithm.client_optimizer
  optimizer_state = optimizer.set_hparams(
    optimizer.initialize(specs), {'learning_rate': received.learning_rate}
  )
  metrics = algorithm.model.metrics.initialize()
  return ClientState(start, optimizer_state, 0.0, 0.0, 0.0, metrics)


def client_step(
  algorithm: Algorithm,
  received: Broadcast,
  memories: Memories,
  state: ClientState,
  *batches: Any,
) -> ClientState:
  """The client takes the local step k on its batches A_k and B_k."""
  model = algorithm.model
  start = received.model
  weights = models.ModelWeights(state.weights, start.non_trainable)
  # g = ∇f_i(w; A_k, B_k) + R_i(w)
  with tf.GradientTape() as tape:
    tape.watch(weights.trainable)
    result = algorithm.personalization.meta_loss(
      model, weights, batches, received.weight_decay
    )
  gradient = tape.gradient(
    result.loss, weights.trainable, unconnected_gradients='zero'
  )
  term = algorithm.correction.gradient_term(
    memories[0], received.means[0], weights.trainable, start.trainable
  )
  if term is not None:
    gradient = tf.nest.map_structure(tf.add, gradient, term)
  # g ← g min(1, max_grad_norm / ‖g‖)
  gradient = personalizations.clip(gradient, algorithm.max_grad_norm)
  # w ← w - β_t (g + wd w)
  gradient = tuple(
    g + received.weight_decay * w
    for w, g in zip(weights.trainable, gradient, strict=True)
  )
  optimizer_state, new_weights = algorithm.client_optimizer.next(
    state.optimizer, weights.trainable, gradient
  )
  return ClientState(
    weights=new_weights,
    optimizer=optimizer_state,
    num_steps=state.num_steps + 1.0,
    loss_sum=state.loss_sum + result.loss * result.num_examples,
    num_examples=state.num_examples + result.num_examples,
    metrics=model.metrics.update(
      state.metrics, result.labels, result.batch_output
    ),
  )


def client_final(
  algorithm: Algorithm,
  received: Broadcast,
  memories: Memories,
  state: ClientState,
) -> ClientUpdate:
  """The client sends w_i - w^t, and keeps its new λ_i or c_i."""
  start = tuple(received.model.trainable)
  update = tf.nest.map_structure(tf.subtract, state.weights, start)
  # u ← u min(1, C / ‖u‖), w_i = w^t + u
  if algorithm.max_update_norm < math.inf:
    update = tuple(personalizations.clip(update, algorithm.max_update_norm))
  # λ_i ← (1 - γ) λ_i - α (w_i - w^t), or
  # c_i ← (1 - γ) c_i - c + (w^t - w_i) / (K β_t)
  work = corrections.LocalWork(
    start, update, state.num_steps, received.learning_rate
  )
  changes = tuple(
    memory.state_change(old, mean, work)
    for memory, old, mean in zip(
      algorithm.memories, memories, received.means, strict=True
    )
  )
  new_memories = tf.nest.map_structure(
    tf.add, aged(algorithm, memories, 1), changes
  )
  client_message = tuple(
    change if memory.change_is_sent else ()
    for memory, change in zip(algorithm.memories, changes, strict=True)
  )
  is_included = state.num_steps > 0
  for tensor in tf.nest.flatten((update, new_memories, state.loss_sum)):
    is_included &= tf.reduce_all(tf.math.is_finite(tensor))

  def if_included(new: Any, otherwise: Any = None) -> Any:
    if otherwise is None:
      otherwise = tf.nest.map_structure(tf.zeros_like, new)
    return tf.nest.map_structure(
      lambda a, b: tf.where(is_included, a, b), new, otherwise
    )

  return ClientUpdate(
    is_included,
    update=if_included(update),
    client_message=if_included(client_message),
    memories=if_included(new_memories, memories),
    sums=if_included(state._replace(weights=(), optimizer=())),
  )


def server_update(
  algorithm: Algorithm,
  state: ServerState,
  sent: Broadcast,
  participants: Participants,
) -> ServerState:
  """The server moves the model, and the means over the population.

  The model moves to mean_S w_i, unless `Participants.turnout` or the server's
  optimizer changes the step.

  Args:
    algorithm: The method.
    state: The server's state before the round.
    sent: Its broadcast in this round.
    participants: The aggregated updates, of one participant at least.

  Returns:
    The server's state after the round.
  """
  start, update = tuple(sent.model.trainable), participants.mean_update
  # w^t + turnout · mean_S (w_i - w^t), which is mean_S w_i for a turnout of 1
  step = tuple(participants.turnout * u for u in update)
  if algorithm.server_optimizer is None:
    optimizer = state.optimizer
    weights = tf.nest.map_structure(tf.add, start, step)
  else:
    optimizer, weights = algorithm.server_optimizer.next(
      state.optimizer, start, tf.nest.map_structure(tf.negative, step)
    )
  # h ← (1 - γ) h - (α/m) Σ_S (w_i - w^t), or
  # c ← (1 - γ) c + (1/m) Σ_S (the change of c_i):
  # s ← (1 - γ) s + (p/m) mean_S (the change of s_i)
  work = corrections.LocalWork(
    start, update, participants.num_steps, sent.learning_rate
  )
  changes = tuple(
    message if memory.change_is_sent else memory.state_change(*means, work)
    for memory, message, *means in zip(
      algorithm.memories,
      participants.mean_message,
      state.means,
      sent.means,
      strict=True,
    )
  )
  means = tf.nest.map_structure(
    lambda mean, change: mean + participants.share * change,
    aged(algorithm, state.means, 1),
    changes,
  )
  return ServerState(weights, means, optimizer)
