"""Algorithm 1 as TFF computations: broadcast, client work, aggregation."""

import collections
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import accessors
from tff_debias import aggregation
from tff_debias import algorithm as algorithm_lib
from tff_debias import corrections
from tff_debias import method as method_lib
from tff_debias import models
from tff_debias import personalizations
from tff_debias import report as report_lib
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
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: method_lib.MetricsAggregator | None = None,
  seed: int = 0,
) -> tff.learning.templates.LearningProcess:
  """Builds the learning process of any personalization and any correction.

  `next` takes the state and, for each participant, an `OrderedDict` of its
  `client_id`, a string, and its `data`, batches that the caller has shuffled
  and repeated. Without personalization a batch makes a local step; with one,
  every two batches are the support and the query of a step. A client takes part
  once a round. Ids are bytes, or ASCII without a NUL at the end.

  The metrics of `next` are an `OrderedDict` of scalars: `distributor` and
  `aggregator` with the `models` and the uncompressed `bytes` sent so far, down
  and up, and the aggregator's own measurements; `client_work` with the `train`
  loss and metrics, the numbers of `participants` and of clients `left_out`
  (without data, or without a finite result), and the mean `correction_norm` of
  the participants' states; `finalizer` with the `update_norm` and the
  `server_correction_norm`.

  `get_model_weights` gives the model *selected*, mean_S w_i, as
  `tff.learning.models.ModelWeights`; `get_all_model_weights` gives the model
  *all*. `set_model_weights` sets *selected* and leaves corrections as they are.
  The hyperparameters are `learning_rate` (without a `learning_rate_fn`),
  `weight_decay` and those of the correction.

  Args:
    model: The model, from `from_keras` or `from_functional`; or a
      `tff.learning.models.FunctionalModel`.
    personalization: T_i.
    correction: R_i.
    learning_rate: β, the constant learning rate of the local steps.
    learning_rate_fn: In its place, β_t: a function from the number of rounds
      done, an int32 scalar, to the learning rate, a float32 scalar. See
      `exponential_decay`.
    weight_decay: wd, applied after the clipping.
    max_grad_norm: The bound on the norm of the corrected gradient, all layers
      together; `math.inf` for none. By default the personalization's
      `default_max_grad_norm`: the paper's 10, and none without personalization.
    num_clients: m, the number of clients in the population. Corrections and
      `track_all` need it.
    storage: Where clients keep their states. Corrections and `track_all` need
      it.
    track_all: Whether to keep the model *all*, the mean over all clients of
      each one's newest w_i. It costs one more state per client, and one more
      model up.
    client_weighting: Whether the mean over participants is uniform, as in the
      paper, or weighted by the number of examples of their local steps. The
      latter only without a correction, whose means over the population are
      uniform.
    model_aggregator: How updates become a mean (not a sum); by default
      `tff.aggregators.MeanFactory`. An unweighted factory gets zeros from a
      client that is left out; its result is scaled to the mean over the
      participants. With a correction or `track_all` the mean must be exact: an
      aggregator that clips updates, replaces them or adds noise is refused.
      `dp_aggregator` and `secure_aggregator` are allowed, because their clients
      clip before they change their states. A compression without a bias is
      allowed too; the metric `bytes` counts its updates uncompressed.
    client_optimizer_fn: A TFF optimizer for the local steps, such as
      `tff.learning.optimizers.build_adam(0.1)`. Its learning rate is set to
      β_t. By default the paper's plain SGD, the only one for Scaf.
    server_optimizer_fn: A TFF optimizer that applies the mean update to the
      model; by default it is added. Not for Dyn, whose server step is part of
      its mathematics.
    max_update_norm: C, by default none. A client clips its update u = w_i - w^t
      to u min(1, C / ‖u‖), all layers together, and then takes w_i = w^t + u.
      So its own state λ_i or c_i moves by just what it sends.
    metrics_aggregator: How TFF's builders take it; by default
      `tff.learning.metrics.sum_then_finalize`. It aggregates the `train`
      metrics. If it sums securely, as `secure_sum_then_finalize`, all else that
      clients report is summed securely too. TFF runs secure sums on this
      machine in `tff.backends.test.create_sync_test_cpp_execution_context()`.
    seed: Not used.

  Returns:
    A `tff.learning.templates.LearningProcess`.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range, or missing for this method.
  """
  method = method_lib.Method(
    model=models.as_model(model),
    personalization=personalization,
    correction=correction,
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
    num_clients=num_clients,
    storage=storage,
    track_all=track_all,
    client_weighting=client_weighting,
    model_aggregator=model_aggregator,
    client_optimizer_fn=client_optimizer_fn,
    server_optimizer_fn=server_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=(
      metrics_aggregator or tff.learning.metrics.sum_then_finalize
    ),
    seed=seed,
  )
  process = _build_process(method)
  # The last step: a call that fails leaves no folder behind.
  if method.keeps_state:
    storage.make_folder()
  return process


class _Sent(NamedTuple):
  """What every client receives; the lineage is `()` if it keeps no state."""

  broadcast: algorithm_lib.Broadcast
  hparams: method_lib.Hparams
  round_num: tf.Tensor
  lineage: storage_lib.Lineage


class _Upload(NamedTuple):
  """What a client sends to be averaged, as flat tuples of tensors."""

  update: corrections.Weights
  client_message: corrections.State


class _Work(NamedTuple):
  """The outcome of a client's work; `weight` is its weight in the means."""

  upload: _Upload
  weight: tf.Tensor
  report: report_lib.Report


def _build_process(
  method: method_lib.Method,
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

  @models.computation()
  def first_broadcast():
    return _server_broadcast(method, _server_part(_initial_state(method, ())))

  @models.computation(first_broadcast.type_signature.result, client_type)
  def client_work(sent, client):
    return _client_work(method, sent, client)

  work_type = client_work.type_signature.result
  sum_report = report_lib.build_sum(method, work_type.report)
  aggregator = aggregation.build_mean(method.model_aggregator, work_type.upload)
  if method.keeps_state:
    aggregation.check_exact(
      method.model_aggregator, aggregator, method.state_reason
    )

  @tff.tensorflow.computation(
    aggregator.initialize.type_signature.result.member
  )
  def initial_state(aggregator_state):
    return _initial_state(method, aggregator_state)

  @tff.federated_computation
  def initialize():
    return tff.federated_map(initial_state, aggregator.initialize())

  state_type = initialize.type_signature.result

  @models.computation(state_type.member)
  def server_broadcast(state):
    return _server_broadcast(method, _server_part(state))

  aggregated_type = aggregator.next.type_signature.result

  @models.computation(
    state_type.member,
    aggregated_type.state.member,
    aggregated_type.result.member,
    aggregated_type.measurements.member,
    sum_report.type_signature.result.member,
  )
  def finish_round(state, aggregator_state, means, measurements, report):
    sent_bytes = transfer.type_bytes(
      tff.to_type((work_type.upload, work_type.report))
    )
    return _finish_round(
      method, state, aggregator_state, means, measurements, report, sent_bytes
    )

  @tff.federated_computation(
    state_type, tff.FederatedType(client_type, tff.CLIENTS)
  )
  def next_fn(state, clients):
    sent = tff.federated_map(server_broadcast, state)
    work = tff.federated_map(
      client_work, (tff.federated_broadcast(sent), clients)
    )
    aggregated = aggregator.next(
      state.aggregator.process, work.upload, work.weight
    )
    new_state, metrics = tff.federated_map(
      finish_round,
      (
        state,
        aggregated.state,
        aggregated.result,
        aggregated.measurements,
        sum_report(work.report),
      ),
    )
    return tff.learning.templates.LearningProcessOutput(new_state, metrics)

  return accessors.build(method, initialize, next_fn)


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
      lineage=storage_lib.start_lineage() if method.keeps_state else (),
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
  lineage: storage_lib.Lineage
  state: algorithm_lib.ServerState


def _server_part(state: State) -> _Server:
  weights, finalizer = state.global_model_weights, state.finalizer
  return _Server(
    weights,
    state.client_work['round'],
    state.client_work['hparams'],
    state.client_work['lineage'],
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
  return _Sent(broadcast, hparams, server.round_num, server.lineage)


def _client_work(
  method: method_lib.Method,
  sent: _Sent,
  client: collections.OrderedDict[str, Any],
) -> _Work:
  """Reads the client's states, lets it work, and writes its new states."""
  algorithm = method.algorithm(sent.hparams)
  memories = method.initial_memories(sent.broadcast.model.trainable)
  where = (sent.lineage, client['client_id'])
  if method.keeps_state:
    stored, old_token, age = method.storage.read(
      *where, tf.nest.flatten(memories)
    )
    memories = algorithm_lib.aged(
      algorithm, tf.nest.pack_sequence_as(memories, stored), age
    )
  result = algorithm_lib.client_update(
    algorithm,
    sent.broadcast,
    memories,
    client['data'],
  )
  is_included, counted_receipt = result.is_included, ()
  if method.keeps_state:
    new_token = tf.cond(
      is_included,
      lambda: method.storage.write(*where, tf.nest.flatten(result.memories)),
      lambda: tf.constant(0, tf.int64),
    )
    receipt = storage_lib.receipt(old_token, new_token)
    counted_receipt = (
      receipt.is_new,
      receipt.fingerprint,
      receipt.fingerprint - receipt.change,
    )
    # Made of the write's result: TensorFlow's optimizer can remove a control
    # dependency, and the write with it.
    is_included = new_token > 0
  weight = tf.cast(is_included, tf.float32)
  if method.is_weighted_by_examples:
    weight *= result.sums.num_examples
  return _Work(
    _Upload(result.update, tuple(tf.nest.flatten(result.client_message))),
    weight,
    report_lib.of_client(result, is_included, counted_receipt),
  )


def _finish_round(
  method: method_lib.Method,
  state: State,
  aggregator_state: Any,
  means: collections.OrderedDict[str, Any],
  measurements: collections.OrderedDict[str, Any],
  report: report_lib.Report,
  sent_bytes: int,
) -> tuple[State, collections.OrderedDict[str, Any]]:
  """The server's new state and the metrics of the round."""
  server = _server_part(state)
  sent = _server_broadcast(method, server)
  algorithm = method.algorithm(server.hparams)
  means = aggregation.of_participants(
    method.model_aggregator,
    means,
    report.counts.clients,
    report.counts.participants,
  )
  # `means` has only the parts of an upload that are not empty.
  client_message = means.get('client_message', ())
  message_like = tuple(
    like if memory.change_is_sent else ()
    for memory, like in zip(algorithm.memories, server.state.means, strict=True)
  )
  participants = tf.cast(report.counts.participants, tf.float32)
  update = algorithm_lib.Participants(
    tuple(means['update']),
    tf.nest.pack_sequence_as(message_like, tf.nest.flatten(client_message)),
    participants / float(method.num_clients or 1),
    report_lib.mean_steps(algorithm, report.counts),
    turnout=participants / (method.num_planned or participants),
  )
  new = algorithm_lib.server_update(
    algorithm, server.state, sent.broadcast, update
  )
  # A round without participants changes neither the model nor the aggregator's
  # state, and the means only decay. Some aggregators divide by zero in such a
  # round, for their result and for their state.
  unchanged = server.state._replace(
    means=algorithm_lib.aged(algorithm, server.state.means, 1)
  )
  new, aggregator_state = tf.nest.map_structure(
    lambda after, before: tf.where(participants > 0, after, before),
    (new, aggregator_state),
    (unchanged, state.aggregator['process']),
  )
  one_model = sent.broadcast.model.trainable
  new_state = State(
    models.ModelWeights(new.weights, server.weights.non_trainable),
    transfer.add_round(
      state.distributor,
      report.counts.clients,
      one_model,
      (one_model, sent.broadcast.means),
      transfer.tensor_bytes(sent),
    ),
    collections.OrderedDict(
      state.client_work,
      round=server.round_num + 1,
      lineage=_next_lineage(method, server.lineage, report.counts),
    ),
    collections.OrderedDict(
      process=aggregator_state,
      transfer=transfer.add_round(
        state.aggregator['transfer'],
        report.counts.clients,
        one_model,
        # A scalar, such as the 1 beside a newest model, is no model.
        (means['update'], [t for t in client_message if t.shape.rank]),
        sent_bytes,
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
    client_work=report_lib.client_metrics(report),
    aggregator=collections.OrderedDict(
      new_state.aggregator['transfer'],
      **{name: value for name, value in measurements.items() if len(value)},
    ),
    finalizer=collections.OrderedDict(
      update_norm=tf.where(
        participants > 0, report_lib.norm(means['update']), 0.0
      ),
      server_correction_norm=report_lib.norm(new.means[0]),
    ),
  )
  return new_state, metrics


def _next_lineage(
  method: method_lib.Method,
  lineage: storage_lib.Lineage,
  counts: report_lib.Counts,
) -> storage_lib.Lineage:
  """The lineage after the round, if clients keep states."""
  if not method.keeps_state:
    return ()
  is_new, fingerprint, old_fingerprint = counts.receipt
  lineage = method.storage.finish_round(
    lineage,
    counts.participants,
    storage_lib.Receipt(is_new, fingerprint, fingerprint - old_fingerprint),
  )
  is_possible = tf.debugging.Assert(
    lineage.num_clients <= method.num_clients,
    [
      f'num_clients={method.num_clients} is too small. Number of clients that'
      ' have taken part:',
      lineage.num_clients,
    ],
  )
  with tf.control_dependencies([is_possible]):
    return lineage._replace(num_clients=tf.identity(lineage.num_clients))
