"""Algorithm 1 as a TFF learning process: broadcast, client work, aggregation."""

import collections
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import aggregation
from tff_debias import algorithm as algorithm_lib
from tff_debias import corrections
from tff_debias import method as method_lib
from tff_debias import models
from tff_debias import personalizations
from tff_debias import storage as storage_lib
from tff_debias import transfer

State = tff.learning.templates.LearningAlgorithmState


def build_learning_process(
  model: models.Model,
  personalization: personalizations.Personalization,
  correction: corrections.Correction,
  *,
  learning_rate: float = 0.1,
  learning_rate_fn: method_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  num_clients: int | None = None,
  storage: storage_lib.ClientStorage | None = None,
  track_all: bool = False,
  client_weighting: tff.learning.ClientWeighting = (
    tff.learning.ClientWeighting.UNIFORM
  ),
  model_aggregator: aggregation.AggregationFactory | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
) -> tff.learning.templates.LearningProcess:
  """Builds the learning process of any personalization and any correction.

  `next` takes the state and, for each participant, an `OrderedDict` of its
  `client_id`, a string, and its `data`, batches that the caller has shuffled and
  repeated. Without personalization a batch makes a local step; with one, every
  two batches are support and query of a step. A client takes part once a round.
  Ids are bytes, or ASCII without a NUL at the end.

  The metrics of `next` are an `OrderedDict` of scalars: `distributor` and
  `aggregator` with the `models` and `bytes` sent so far, down and up;
  `client_work` with the `train` loss and metrics, the `participants`, those
  `left_out` (no data, or no finite result) and the mean `correction_norm` of the
  participants' states; `finalizer` with the `update_norm` and the
  `server_correction_norm`.

  `get_model_weights` gives the model *selected*, mean_S w_i, as
  `tff.learning.models.ModelWeights`; `get_all_model_weights` gives the model
  *all*. `set_model_weights` sets *selected* and leaves corrections as they are.
  The hyperparameters are `learning_rate` (without a `learning_rate_fn`),
  `weight_decay` and those of the correction.

  Args:
    model: The model, from `from_keras` or `from_functional`.
    personalization: T_i.
    correction: R_i. One of your own must have in its `repr` all that tells it
      from others, as a dataclass has: the client storage compares it.
    learning_rate: β, the constant learning rate of the local steps.
    learning_rate_fn: In its place, β_t: a function from the number of rounds
      done, an int32 scalar, to the learning rate, a float32 scalar. See
      `exponential_decay`.
    weight_decay: wd, applied after the clipping.
    max_grad_norm: The bound on the norm of the corrected gradient, all layers
      together; `math.inf` for none. By default the paper's 10 if the method
      personalizes, and none if not.
    num_clients: m, the number of clients in the population. Corrections and
      `track_all` need it.
    storage: Where clients keep their states. Corrections and `track_all` need
      it.
    track_all: Whether to keep the model *all*, the mean over all clients of each
      one's newest w_i. It costs one more state per client and one more model up.
    client_weighting: Whether the mean over participants is uniform, as in the
      paper, or weighted by the number of examples of their local steps. The
      latter only without a correction, whose means over the population are
      uniform.
    model_aggregator: How updates become a mean (not a sum); by default
      `tff.aggregators.MeanFactory`. An unweighted factory sees zeros from a
      client that is left out; its result is scaled to the mean of the others.
    server_optimizer_fn: A TFF optimizer that applies the mean update to the
      model; by default it is added. Not for Dyn, whose server step is part of
      its mathematics.

  Returns:
    A `tff.learning.templates.LearningProcess`.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range, or missing for this method.
  """
  method = method_lib.Method(
    model,
    personalization,
    correction,
    learning_rate,
    learning_rate_fn,
    weight_decay,
    max_grad_norm,
    num_clients,
    storage,
    track_all,
    client_weighting,
    server_optimizer_fn,
  )
  process = _build_process(method, model_aggregator)
  # The last step: a call that fails leaves no folder behind that is claimed.
  if method.keeps_state:
    weights = model.initial_weights.trainable
    storage.claim(
      {
        'correction': repr(correction),
        'personalization': repr(personalization),
        'model': [[w.shape, w.dtype.name] for w in weights],
        'track_all': track_all,
        'num_clients': int(num_clients),
      }
    )
  return process


def get_all_model_weights(state: State) -> models.ModelWeights:
  """The model *all* of a process built with `track_all`.

  Args:
    state: A state of the process, as `next` returned it.

  Returns:
    `tff.learning.models.ModelWeights` of NumPy arrays: the mean over all m
    clients of each one's newest w_i, the initial model where it never took part.

  Raises:
    ValueError: If the process does not keep the model *all*.
  """
  finalizer = state.finalizer
  if not finalizer['initial']:
    raise ValueError(
      'This process does not keep the model all: build it with track_all=True.'
    )
  weights = corrections.all_model(finalizer['means'][-1], finalizer['initial'])
  return models.ModelWeights(
    tuple(np.asarray(w, np.float32) for w in weights),
    state.global_model_weights.non_trainable,
  )


class _Sent(NamedTuple):
  """What every client receives; the rounds count from 1."""

  broadcast: algorithm_lib.Broadcast
  hparams: method_lib.Hparams
  round_num: tf.Tensor


class _Upload(NamedTuple):
  """What a client sends to be averaged, as flat tuples of tensors."""

  update: corrections.Weights
  client_message: corrections.State


class _Report(NamedTuple):
  """What a client sends to be summed up; all are scalars but for the metrics."""

  clients: tf.Tensor
  participants: tf.Tensor
  squared_steps: tf.Tensor
  correction_norm: tf.Tensor
  sums: algorithm_lib.ClientState


class _Work(NamedTuple):
  """The outcome of a client's work; `weight` is its weight in the means."""

  upload: _Upload
  weight: tf.Tensor
  report: _Report


def _build_process(
  method: method_lib.Method,
  model_aggregator: aggregation.AggregationFactory | None,
) -> tff.learning.templates.LearningProcess:
  """A round from top to bottom, of the functions that follow below."""
  client_type = tff.to_type(
    collections.OrderedDict(
      client_id=np.str_,
      data=tff.SequenceType(
        tff.types.tensorflow_to_type(method.model.input_spec)
      ),
    )
  )

  @tff.tensorflow.computation
  def server_start():
    return _server_part(_initial_state(method, ()))

  @tff.tensorflow.computation(server_start.type_signature.result)
  def server_broadcast(server):
    return _server_broadcast(method, server)

  @tff.tensorflow.computation(
    server_broadcast.type_signature.result, client_type
  )
  def client_work(sent, client):
    return _client_work(method, sent, client)

  work_type = client_work.type_signature.result
  aggregator = aggregation.build_mean(model_aggregator, work_type.upload)

  @tff.tensorflow.computation(
    aggregator.initialize.type_signature.result.member
  )
  def initial_state(aggregator_state):
    return _initial_state(method, aggregator_state)

  @tff.federated_computation
  def initialize():
    return tff.federated_map(initial_state, aggregator.initialize())

  state_type = initialize.type_signature.result

  @tff.tensorflow.computation(state_type.member)
  def server_part(state):
    return _server_part(state)

  aggregated_type = aggregator.next.type_signature.result

  @tff.tensorflow.computation(
    state_type.member,
    aggregated_type.state.member,
    aggregated_type.result.member,
    aggregated_type.measurements.member,
    work_type.report,
  )
  def finish_round(state, aggregator_state, means, measurements, report):
    return _finish_round(
      method, state, aggregator_state, means, measurements, report
    )

  @tff.federated_computation(
    state_type, tff.FederatedType(client_type, tff.CLIENTS)
  )
  def next_fn(state, clients):
    sent = tff.federated_map(
      server_broadcast, tff.federated_map(server_part, state)
    )
    work = tff.federated_map(
      client_work, (tff.federated_broadcast(sent), clients)
    )
    aggregated = aggregator.next(
      state.aggregator.process, work.upload, work.weight
    )
    report = tff.federated_sum(work.report)
    new_state, metrics = tff.federated_map(
      finish_round,
      (
        state,
        aggregated.state,
        aggregated.result,
        aggregated.measurements,
        report,
      ),
    )
    return tff.learning.templates.LearningProcessOutput(new_state, metrics)

  return _with_accessors(method, initialize, next_fn)


def _initial_state(method: method_lib.Method, aggregator_state: Any) -> State:
  """The state before the first round."""
  weights = tf.nest.map_structure(tf.constant, method.model.initial_weights)
  trainable, optimizer = weights.trainable, ()
  if method.server_optimizer_fn is not None:
    optimizer = method.server_optimizer_fn.initialize(
      tf.nest.map_structure(tf.TensorSpec.from_tensor, trainable)
    )
  return State(
    global_model_weights=weights,
    distributor=transfer.no_transfer(),
    client_work=collections.OrderedDict(
      round=tf.constant(0),
      hparams=tf.nest.map_structure(tf.constant, method.hparams),
    ),
    aggregator=collections.OrderedDict(
      process=aggregator_state, transfer=transfer.no_transfer()
    ),
    finalizer=collections.OrderedDict(
      means=method.initial_memories(trainable),
      optimizer=optimizer,
      initial=trainable if method.track_all else (),
    ),
  )


class _Server(NamedTuple):
  """The part of the state that a broadcast depends on."""

  weights: models.ModelWeights
  round_num: tf.Tensor
  hparams: method_lib.Hparams
  state: algorithm_lib.ServerState


def _server_part(state: State) -> _Server:
  weights, finalizer = state.global_model_weights, state.finalizer
  return _Server(
    weights,
    state.client_work['round'],
    state.client_work['hparams'],
    algorithm_lib.ServerState(
      weights.trainable, finalizer['means'], finalizer['optimizer']
    ),
  )


def _server_broadcast(method: method_lib.Method, server: _Server) -> _Sent:
  """What the server sends."""
  hparams = server.hparams
  if method.learning_rate_fn is None:
    learning_rate = hparams['learning_rate']
  else:
    learning_rate = method.learning_rate_fn(server.round_num)
  broadcast = algorithm_lib.broadcast(
    method.algorithm(hparams),
    server.state,
    server.weights.non_trainable,
    tf.cast(learning_rate, tf.float32),
    hparams['weight_decay'],
  )
  return _Sent(broadcast, hparams, server.round_num + 1)


def _client_work(
  method: method_lib.Method,
  sent: _Sent,
  client: collections.OrderedDict[str, Any],
) -> _Work:
  """Reads the client's states, lets it work, and writes its new states."""
  memories = method.initial_memories(sent.broadcast.model.trainable)
  where = (client['client_id'], sent.round_num)
  if method.keeps_state:
    stored = method.storage.read(*where, tf.nest.flatten(memories))[1]
    memories = tf.nest.pack_sequence_as(memories, stored)
  result = algorithm_lib.client_update(
    method.algorithm(sent.hparams), sent.broadcast, memories, client['data']
  )
  # What is returned is made of the write's result: TensorFlow's optimizer can
  # remove a control dependency, and the write with it.
  is_included = result.is_included
  if method.keeps_state:
    is_included = tf.cond(
      result.is_included,
      lambda: method.storage.write(*where, tf.nest.flatten(result.memories)),
      lambda: tf.constant(False),
    )
  participants = tf.cast(is_included, tf.float32)
  weight = participants
  if method.is_weighted_by_examples:
    weight *= result.sums.num_examples
  return _Work(
    _Upload(result.update, tuple(tf.nest.flatten(result.client_message))),
    weight,
    _Report(
      clients=tf.constant(1.0),
      participants=participants,
      # A sum of squares soon needs more than the 24 bits of a float32.
      squared_steps=tf.square(tf.cast(result.sums.num_steps, tf.float64)),
      correction_norm=participants * _norm(result.memories[0]),
      sums=result.sums,
    ),
  )


def _finish_round(
  method: method_lib.Method,
  state: State,
  aggregator_state: Any,
  means: _Upload,
  measurements: collections.OrderedDict[str, Any],
  report: _Report,
) -> tuple[State, collections.OrderedDict[str, Any]]:
  """The server's new state and the metrics of the round."""
  server = _server_part(state)
  sent = _server_broadcast(method, server)
  algorithm = method.algorithm(server.hparams)
  message_like = tuple(
    like if memory.change_is_sent else ()
    for memory, like in zip(algorithm.memories, server.state.means, strict=True)
  )
  participants = algorithm_lib.Participants(
    tuple(means.update),
    tf.nest.pack_sequence_as(
      message_like, tf.nest.flatten(means.client_message)
    ),
    report.participants / float(method.num_clients or 1),
    _mean_steps(algorithm, report),
  )
  new = algorithm_lib.server_update(
    algorithm, server.state, sent.broadcast, participants
  )
  # A round without participants leaves the model and the corrections as they
  # were. Some aggregators divide by zero there, in their states too.
  new, aggregator_state = tf.nest.map_structure(
    lambda after, before: tf.where(report.participants > 0, after, before),
    (new, aggregator_state),
    (server.state, state.aggregator['process']),
  )
  one_model = sent.broadcast.model.trainable
  new_state = State(
    models.ModelWeights(new.weights, server.weights.non_trainable),
    transfer.add_round(
      state.distributor,
      report.clients,
      one_model,
      (one_model, sent.broadcast.means),
      sent,
    ),
    collections.OrderedDict(state.client_work, round=sent.round_num),
    collections.OrderedDict(
      process=aggregator_state,
      transfer=transfer.add_round(
        state.aggregator['transfer'],
        report.clients,
        one_model,
        # A scalar, such as the 1 beside a newest model, is no model.
        (means.update, [t for t in means.client_message if t.shape.rank]),
        (means, report),
      ),
    ),
    collections.OrderedDict(
      means=new.means,
      optimizer=new.optimizer,
      initial=state.finalizer['initial'],
    ),
  )
  metrics = collections.OrderedDict(
    distributor=new_state.distributor,
    client_work=_client_metrics(method.model, report),
    aggregator=collections.OrderedDict(
      new_state.aggregator['transfer'],
      **{name: value for name, value in measurements.items() if len(value)},
    ),
    finalizer=collections.OrderedDict(
      update_norm=tf.where(report.participants > 0, _norm(means.update), 0.0),
      server_correction_norm=_norm(new.means[0]),
    ),
  )
  return new_state, metrics


def _mean_steps(
  algorithm: algorithm_lib.Algorithm, report: _Report
) -> tf.Tensor:
  """The mean number K of local steps, the same for all where it has to be."""
  mean = tf.math.divide_no_nan(report.sums.num_steps, report.participants)
  if not algorithm.correction.equal_steps:
    return mean
  # All K are the same where p ΣK² = (ΣK)².
  count, total = (
    tf.cast(x, tf.float64) for x in (report.participants, report.sums.num_steps)
  )
  is_equal = tf.equal(count * report.squared_steps, tf.square(total))
  # tf.debugging.Assert puts its check into a branch if it has a float to show,
  # and TensorFlow's optimizer removes the branch.
  check = tf.raw_ops.Assert(
    condition=is_equal,
    data=[
      f'{algorithm.correction} needs participants with the same number of local'
      ' steps, but they differ in this round. Give each the same number of'
      ' batches, or use equal_steps=False. The mean number is',
      mean,
    ],
  )
  with tf.control_dependencies([check]):
    return tf.identity(mean)


def _client_metrics(
  model: models.Model, report: _Report
) -> collections.OrderedDict[str, Any]:
  sums = report.sums

  def count(number: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(number), tf.int32)

  return collections.OrderedDict(
    train=collections.OrderedDict(
      loss=tf.math.divide_no_nan(sums.loss_sum, sums.num_examples),
      **model.metrics.finalize(sums.metrics),
      num_examples=count(sums.num_examples),
    ),
    participants=count(report.participants),
    left_out=count(report.clients - report.participants),
    correction_norm=tf.math.divide_no_nan(
      report.correction_norm, report.participants
    ),
  )


def _norm(tensors: Any) -> tf.Tensor:
  return tf.linalg.global_norm([tf.zeros([]), *tensors])


def _with_accessors(
  method: method_lib.Method,
  initialize: tff.Computation,
  next_fn: tff.Computation,
) -> tff.learning.templates.LearningProcess:
  """The process, with what reads and sets its weights and hyperparameters."""
  state_type = initialize.type_signature.result.member

  @tff.tensorflow.computation(state_type)
  def get_model_weights(state):
    return state.global_model_weights

  @tff.tensorflow.computation(state_type, state_type.global_model_weights)
  def set_model_weights(state, weights):
    finalizer = state.finalizer
    if method.track_all:
      # Once clients have taken part, their first model is what it was.
      share = finalizer['means'][-1][-1]
      initial = tf.nest.map_structure(
        lambda new, old: tf.where(share > 0, old, new),
        weights.trainable,
        finalizer['initial'],
      )
      finalizer = collections.OrderedDict(finalizer, initial=initial)
    return state._replace(global_model_weights=weights, finalizer=finalizer)

  @tff.tensorflow.computation(state_type)
  def get_hparams(state):
    return state.client_work['hparams']

  @tff.tensorflow.computation(state_type, state_type.client_work.hparams)
  def set_hparams(state, hparams):
    return state._replace(
      client_work=collections.OrderedDict(state.client_work, hparams=hparams)
    )

  return tff.learning.templates.LearningProcess(
    initialize,
    next_fn,
    get_model_weights,
    set_model_weights,
    get_hparams_fn=get_hparams,
    set_hparams_fn=set_hparams,
  )
