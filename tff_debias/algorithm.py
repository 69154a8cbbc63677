"""Algorithm 1 of Acar et al. (ICML 2021), all of it: pure functions of tensors.

Round t, with m clients, the participants S, and the meta-loss f_i(w) =
L_i(T_i(w)) of a personalization T_i:

    server    broadcast      sends w^t, β_t and, for Scaf, c
    client i  client_init    w = w^t
              client_step    K times w ← w - β_t (clip(∇f_i(w) + R_i(w)) + wd w)
              client_final   w_i = w; sends w_i - w^t; keeps its new λ_i or c_i
    server    server_update  mean_S w_i, and the mean of λ_i or c_i over all m

What a client keeps from round to round, λ_i or c_i and perhaps its newest w_i,
are its `states`. Their means over all m clients are the `mean_states`.

One option is not in the paper. With `max_update_norm`, a client clips w_i - w^t
before it sends it and before it computes its new λ_i or c_i. So its own state
moves by the same update that the server gets.

`learning_process.py` places these functions at the server and the clients.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import aggregation
from tff_debias import checks
from tff_debias import corrections
from tff_debias import loops
from tff_debias import models
from tff_debias import personalizations
from tff_debias import storage as storage_lib

Weights: TypeAlias = corrections.Weights
#: A tensor structure for each of `Algorithm.kept_states`.
States: TypeAlias = tuple[corrections.State, ...]
#: From the number of rounds done to the learning rate.
LearningRateFn: TypeAlias = Callable[[tf.Tensor], tf.Tensor]
#: As `tff.learning.metrics.sum_then_finalize`.
MetricsAggregator: TypeAlias = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Algorithm:
  """A method: what stays the same in all rounds.

  The attributes are the arguments of `build_learning_process`, which describes
  them.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range, or not right for the method.
  """

  model: models.Model
  personalization: personalizations.Personalization
  correction: corrections.Correction
  max_grad_norm: float | None = None
  _: dataclasses.KW_ONLY
  learning_rate: float | None = None
  learning_rate_fn: LearningRateFn | None = None
  weight_decay: float = 0.0
  num_clients: int | None = None
  storage: storage_lib.ClientStorage | None = None
  track_all: bool = False
  model_aggregator: aggregation.AggregationFactory | None = None
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None = None
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None
  max_update_norm: float | None = None
  metrics_aggregator: MetricsAggregator | None = None
  jit_compile: bool = False

  def __post_init__(self) -> None:
    checks.check_type(
      'personalization', self.personalization, personalizations.Personalization
    )
    checks.check_type('correction', self.correction, corrections.Correction)
    checks.check_number('weight_decay', self.weight_decay)
    for name in ('learning_rate', 'max_grad_norm', 'max_update_norm'):
      bound = getattr(self, name)
      if bound is not None:
        is_rate = name == 'learning_rate'
        checks.check_number(name, bound, positive=True, finite=is_rate)
    self.personalization.check_model(self.model)
    for name, is_allowed, reason in (
      (
        'client_optimizer_fn',
        self.correction.allows_client_optimizer,
        'is right for plain SGD only',
      ),
      (
        'server_optimizer_fn',
        self.correction.allows_server_optimizer,
        'has a server step of its own',
      ),
    ):
      optimizer = getattr(self, name)
      if optimizer is None:
        continue
      if not isinstance(optimizer, tff.learning.optimizers.Optimizer):
        raise TypeError(
          f'{name} must be a TFF optimizer, such as'
          ' tff.learning.optimizers.build_sgdm(0.1), and not a Keras optimizer'
          f' or a function that makes one, got {optimizer!r}.'
        )
      if not is_allowed:
        raise ValueError(
          f'{self.correction} {reason}: {name} must be None, got {optimizer!r}.'
        )
    self._check_rates()

  def _check_rates(self) -> None:
    """Raises a `ValueError` if there are two different learning rates."""
    rates = {}
    if self.learning_rate is not None:
      rates['learning_rate'] = self.learning_rate
    if self.learning_rate_fn is not None:
      rates['learning_rate_fn'] = self.learning_rate_fn(tf.constant(0))
    if self.client_optimizer_fn is not None:
      rates['client_optimizer_fn'] = self.constant_learning_rate
    if len({float(tf.cast(rate, tf.float32)) for rate in rates.values()}) > 1:
      texts = [f'{name} has {float(rate):g}' for name, rate in rates.items()]
      raise ValueError(
        'The local steps need one learning rate, but there are different ones'
        f' at the beginning: {", ".join(texts)}. Leave learning_rate out to'
        ' take that of the optimizer or of the function.'
      )

  def check_population(self) -> None:
    """Raises a `ValueError` if `num_clients` or `storage` is missing."""
    if not self.keeps_state:
      return
    checks.check_integer(
      f'{self.state_reason} needs the size of the population: num_clients',
      self.num_clients,
    )
    if not isinstance(self.storage, storage_lib.ClientStorage):
      raise ValueError(
        f'{self.state_reason} keeps a state on every client and needs storage,'
        f' a ClientStorage(folder), got {self.storage!r}.'
      )

  @property
  def kept_states(self) -> tuple[corrections.KeptState, ...]:
    """The kinds of state that a client keeps; that of R_i comes first."""
    if self.track_all:
      return (self.correction, corrections.NewestModel())
    return (self.correction,)

  @property
  def keeps_state(self) -> bool:
    """Whether clients keep anything from round to round."""
    return any(kept.is_kept for kept in self.kept_states)

  @property
  def state_reason(self) -> str:
    """What makes clients keep a state, for messages."""
    return 'track_all' if self.track_all else repr(self.correction)

  @property
  def models_down(self) -> int:
    """How many models a client receives in a round."""
    return 1 + sum(kept.is_broadcast for kept in self.kept_states)

  @property
  def models_up(self) -> int:
    """How many models a client sends in a round."""
    return 1 + sum(
      kept.is_kept and kept.change_is_sent for kept in self.kept_states
    )

  @functools.cached_property
  def constant_learning_rate(self) -> float:
    """β without a `learning_rate_fn`: the client optimizer's own, or 0.1."""
    if self.client_optimizer_fn is None:
      return 0.1 if self.learning_rate is None else float(self.learning_rate)
    optimizer = self.client_optimizer_fn
    hparams = optimizer.get_hparams(optimizer.initialize(tf.TensorSpec([])))
    if 'learning_rate' not in hparams:
      raise ValueError(
        'client_optimizer_fn must have the hyperparameter learning_rate, got'
        f' {optimizer!r} with {list(hparams)}. For a schedule, give a'
        ' learning_rate_fn.'
      )
    return float(hparams['learning_rate'])

  @property
  def client_optimizer(self) -> tff.learning.optimizers.Optimizer:
    """Takes the local steps; the paper's plain SGD by default."""
    return self.client_optimizer_fn or tff.learning.optimizers.build_sgdm()

  @property
  def client_storage(self) -> storage_lib.ClientStorage:
    """The storage of a method that keeps a state."""
    assert self.storage is not None  # By `check_population`.
    return self.storage

  @property
  def update_norm_bound(self) -> float:
    """The bound C on the norm of a client's update, or infinity."""
    # Of `dp_aggregator` or `secure_aggregator`.
    bound = getattr(self.model_aggregator, 'max_update_norm', math.inf)
    return float(min(bound, self.max_update_norm or math.inf))

  @property
  def num_planned(self) -> float | None:
    """The fixed number that sums of updates are divided by, if one is."""
    return getattr(self.model_aggregator, 'num_planned', None)


class ServerState(NamedTuple):
  """What the server remembers from round to round.

  Attributes:
    weights: The model *selected*, mean_S w_i of the last round.
    mean_states: The means of the clients' states over the population.
    optimizer: The state of the server's optimizer, `()` without one.
  """

  weights: Weights
  mean_states: States
  optimizer: Any


class Broadcast(NamedTuple):
  """What every participant of a round receives.

  Attributes:
    model: The model w^t.
    mean_states: The means that clients need, such as c of Scaf; `()` for
      others.
    learning_rate: β_t, a float32 scalar.
    weight_decay: wd, a float32 scalar.
  """

  model: models.ModelWeights
  mean_states: States
  learning_rate: tf.Tensor
  weight_decay: tf.Tensor


class LocalTraining(NamedTuple):
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
    has_stepped: Whether it took a step, a bool scalar also if it is not
      included.
    update: w_i - w^t.
    state_changes: The changes of its states that are sent; `()` for others.
    states: Its new states.
    sums: Its last `LocalTraining`, of which only the number of steps, the loss,
      the examples and the metrics are kept.
  """

  is_included: tf.Tensor
  has_stepped: tf.Tensor
  update: Weights
  state_changes: States
  states: States
  sums: LocalTraining


def initial_states(algorithm: Algorithm, weights: Weights) -> States:
  """The states of a client that never took part, and so their first means."""
  return tuple(kept.initial_state(weights) for kept in algorithm.kept_states)


def sent_changes(algorithm: Algorithm, changes: States) -> States:
  """Those changes of states that a client sends; `()` in place of others."""
  return tuple(
    change if kept.change_is_sent else ()
    for kept, change in zip(algorithm.kept_states, changes, strict=True)
  )


def broadcast(
  algorithm: Algorithm,
  state: ServerState,
  non_trainable: Weights,
  learning_rate: tf.Tensor,
  weight_decay: tf.Tensor,
) -> Broadcast:
  """The server sends w^t: mean_S w_i, or mean_S w_i - h/α for Dyn; and c."""
  weights = algorithm.correction.broadcast_model(
    state.weights, state.mean_states[0]
  )
  mean_states = tuple(
    mean_state if kept.is_broadcast else ()
    for kept, mean_state in zip(
      algorithm.kept_states, state.mean_states, strict=True
    )
  )
  model = models.ModelWeights(weights, non_trainable)
  return Broadcast(model, mean_states, learning_rate, weight_decay)


def client_update(
  algorithm: Algorithm,
  received: Broadcast,
  states: States,
  dataset: tf.data.Dataset,
) -> ClientUpdate:
  """The client's round, from its states λ_i or c_i and its batches.

  Args:
    algorithm: The method.
    received: The server's broadcast.
    states: The client's states before the round.
    dataset: Batches. Without personalization each one makes a local step; with
      one, every two are its support A_k and its query B_k. A rest is not used.
      Of one batch alone, A_1 and B_1 are every second example.

  Returns:
    The client's update.
  """
  final = loops.reduce_batches(
    dataset,
    client_init(algorithm, received),
    functools.partial(client_step, algorithm, received, states),
    algorithm.personalization.batches_per_step,
    algorithm.jit_compile,
  )
  return client_final(algorithm, received, states, final)


def client_init(algorithm: Algorithm, received: Broadcast) -> LocalTraining:
  """The client starts from w = w^t."""
  start = tuple(received.model.trainable)
  specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, start)
  optimizer = algorithm.client_optimizer
  optimizer_state = optimizer.set_hparams(
    optimizer.initialize(specs), {'learning_rate': received.learning_rate}
  )
  metrics = algorithm.model.metrics.initialize()
  return LocalTraining(start, optimizer_state, 0.0, 0.0, 0.0, metrics)


def client_step(
  algorithm: Algorithm,
  received: Broadcast,
  states: States,
  training: LocalTraining,
  *batches: Any,
) -> LocalTraining:
  """The client takes the local step k on its batches A_k and B_k."""
  model, start = algorithm.model, received.model
  weights = models.ModelWeights(training.weights, start.non_trainable)
  # g = ∇f_i(w; A_k, B_k) + R_i(w)
  with tf.GradientTape() as tape:
    tape.watch(weights.trainable)
    result = algorithm.personalization.meta_loss(
      model, weights, batches, received.weight_decay
    )
  gradient = personalizations.gradient(tape, result.loss, weights.trainable)
  term = algorithm.correction.gradient_term(
    states[0], received.mean_states[0], weights.trainable, start.trainable
  )
  if term is not None:
    gradient = tf.nest.map_structure(tf.add, gradient, term)
  # g ← g min(1, max_grad_norm / ‖g‖)
  gradient = personalizations.clip(
    gradient,
    algorithm.personalization.grad_norm_bound(algorithm.max_grad_norm),
  )
  # w ← w - β_t (g + wd w)
  gradient = tuple(
    g + received.weight_decay * w
    for w, g in zip(weights.trainable, gradient, strict=True)
  )
  optimizer_state, new_weights = algorithm.client_optimizer.next(
    training.optimizer, weights.trainable, gradient
  )
  return LocalTraining(
    weights=new_weights,
    optimizer=optimizer_state,
    num_steps=training.num_steps + 1.0,
    loss_sum=training.loss_sum + result.loss * result.num_examples,
    num_examples=training.num_examples + result.num_examples,
    metrics=model.metrics.update(
      training.metrics, result.labels, result.batch_output
    ),
  )


def client_final(
  algorithm: Algorithm,
  received: Broadcast,
  states: States,
  training: LocalTraining,
) -> ClientUpdate:
  """The client sends w_i - w^t, and keeps its new λ_i or c_i."""
  start = tuple(received.model.trainable)
  update = tf.nest.map_structure(tf.subtract, training.weights, start)
  # u ← u min(1, C / ‖u‖), w_i = w^t + u
  if algorithm.update_norm_bound < math.inf:
    update = tuple(personalizations.clip(update, algorithm.update_norm_bound))
  # λ_i ← λ_i - α (w_i - w^t), or c_i ← c_i - c + (w^t - w_i) / (K β_t)
  work = corrections.LocalWork(
    start, update, training.num_steps, received.learning_rate
  )
  changes = tuple(
    kept.state_change(state, mean_state, work)
    for kept, state, mean_state in zip(
      algorithm.kept_states, states, received.mean_states, strict=True
    )
  )
  new_states = tf.nest.map_structure(tf.add, states, changes)
  is_included = has_stepped = training.num_steps > 0
  for tensor in tf.nest.flatten((update, new_states, training.loss_sum)):
    is_included &= tf.reduce_all(tf.math.is_finite(tensor))

  def if_included(new: Any, otherwise: Any = None) -> Any:
    if otherwise is None:
      otherwise = tf.nest.map_structure(tf.zeros_like, new)
    return tf.nest.map_structure(
      lambda a, b: tf.where(is_included, a, b), new, otherwise
    )

  return ClientUpdate(
    is_included,
    has_stepped,
    update=if_included(update),
    state_changes=if_included(sent_changes(algorithm, changes)),
    states=if_included(new_states, states),
    sums=if_included(training._replace(weights=(), optimizer=())),
  )


def server_update(
  algorithm: Algorithm,
  state: ServerState,
  sent: Broadcast,
  mean_update: Weights,
  mean_changes: States,
  share: tf.Tensor,
  turnout: tf.Tensor | float = 1.0,
) -> ServerState:
  """The server moves the model, and the means over the population.

  The model moves to mean_S w_i, unless `turnout` or the server's optimizer
  changes the step.

  Args:
    algorithm: The method.
    state: The server's state before the round.
    sent: Its broadcast in this round.
    mean_update: mean_S (w_i - w^t), over one participant at least.
    mean_changes: The mean of the changes that clients sent; `()` for others.
    share: p/m, the participants' share of all clients, a float32 scalar.
    turnout: p over the planned number of participants with `dp_aggregator`,
      which divides by a fixed number; else 1. It scales the model's step only.

  Returns:
    The server's state after the round.
  """
  start = tuple(sent.model.trainable)
  # w^t + turnout · mean_S (w_i - w^t), which is mean_S w_i for a turnout of 1
  step = tuple(turnout * u for u in mean_update)
  if algorithm.server_optimizer_fn is None:
    optimizer = state.optimizer
    weights = tf.nest.map_structure(tf.add, start, step)
  else:
    # The optimizer takes -mean_S (w_i - w^t) as the gradient at w^t.
    optimizer, weights = algorithm.server_optimizer_fn.next(
      state.optimizer, start, tf.nest.map_structure(tf.negative, step)
    )
  # h ← h - (α/m) Σ_S (w_i - w^t), or c ← c + (1/m) Σ_S (the change of c_i):
  # s ← s + (p/m) mean_S (the change of s_i)
  changes = tuple(
    change
    if kept.change_is_sent
    else kept.state_change(
      mean_state,
      sent_mean,
      corrections.LocalWork(
        start, mean_update, float(kept.num_steps or 0), sent.learning_rate
      ),
    )
    for kept, change, mean_state, sent_mean in zip(
      algorithm.kept_states,
      mean_changes,
      state.mean_states,
      sent.mean_states,
      strict=True,
    )
  )
  mean_states = tf.nest.map_structure(
    lambda mean_state, change: mean_state + share * change,
    state.mean_states,
    changes,
  )
  return ServerState(weights, mean_states, optimizer)
