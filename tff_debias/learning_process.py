"""Algorithm 1 as TFF computations: a whole round in one file, top to bottom."""

import collections
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import aggregation
from tff_debias import algorithm as algorithm_lib
from tff_debias import checks
from tff_debias import corrections
from tff_debias import loops
from tff_debias import models
from tff_debias import personalizations
from tff_debias import storage as storage_lib
from tff_debias import training

State: TypeAlias = tff.learning.templates.LearningAlgorithmState


def build_learning_process(
  model: models.Model,
  personalization: personalizations.Personalization,
  correction: corrections.Correction,
  *,
  learning_rate: float | None = None,
  learning_rate_fn: algorithm_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  num_clients: int | None = None,
  storage: storage_lib.ClientStorage | None = None,
  track_all: bool = False,
  model_aggregator: aggregation.AggregationFactory | None = None,
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: algorithm_lib.MetricsAggregator | None = None,
  jit_compile: bool = False,
) -> tff.learning.templates.LearningProcess:
  """Builds the learning process of any personalization and any correction.

  `next` takes the state and `client_data`, the data sets of the participants:
  batches that the caller has shuffled and repeated. Without personalization a
  batch makes a local step; with one, every two batches are the support and the
  query of a step, or every second example of a client's only batch. Where
  clients keep a state (with Dyn, Scaf or `track_all`), a participant is an
  `OrderedDict` of its `client_id` and its `data`, and takes part once a round.
  An id is text or bytes of 175 bytes at most; outside of our `runtime`, TFF
  takes text in ASCII only. A round fails, and its state before is still good,
  if clients have data but none takes a step, or if no result is finite.

  The metrics of `next` are an `OrderedDict` of scalars: `distributor` and
  `aggregator` with the `models` and the uncompressed `bytes` sent so far, down
  and up, and the aggregator's own measurements; `client_work` with the `train`
  loss and metrics, the numbers of `participants` and of clients `left_out`
  (without data for a step, or without a finite result), and the mean
  `correction_norm` of the participants' states; `finalizer` with the
  `update_norm` and the `server_correction_norm`. As in Keras' `fit`, the
  `train` loss contains the network's own losses (regularizers). TFF's FedAvg
  trains on them, too, but leaves them out of the loss that it reports.

  `get_model_weights` gives the model *selected*, mean_S w_i, as
  `tff.learning.models.ModelWeights`; `get_all_model_weights` gives the model
  *all*. `set_model_weights` sets *selected* and leaves corrections as they are.
  The hyperparameters are `learning_rate` (without a `learning_rate_fn`) and
  `weight_decay`.

  Args:
    model: The model, from `from_keras` or `from_functional`; or what TFF takes:
      a `model_fn`, a `VariableModel`, a `FunctionalModel` or a `BaselineTask`.
      A `VariableModel` written by hand has no personalization.
    personalization: T_i.
    correction: R_i.
    learning_rate: β, the constant learning rate of the local steps; by default
      that of the `client_optimizer_fn`, and 0.1 without one.
    learning_rate_fn: In its place, β_t: a function from the number of rounds
      done, an int32 scalar, to the learning rate, a float32 scalar. See
      `exponential_decay`.
    weight_decay: wd, applied after the clipping.
    max_grad_norm: The bound on the norm of the corrected gradient, all layers
      together; `math.inf` for none. By default the personalization's
      `default_max_grad_norm`: the paper's 10, and none without personalization.
    num_clients: m, the number of clients in the population. A method whose
      clients keep a state needs it; others do not use it.
    storage: Where clients keep their states, likewise.
    track_all: Whether to keep the model *all*, the mean over all clients of
      each one's newest w_i. It costs one more state per client, and one more
      model up.
    model_aggregator: How updates become a mean (not a sum); by default
      `tff.aggregators.MeanFactory`. The mean is uniform, where TFF's FedAvg
      weights by examples. An unweighted factory gets zeros from a client that
      is left out; its result is scaled to the mean over the participants. With
      a correction or `track_all` the mean must be exact: TFF's means and
      compressions without a bias; `dp_aggregator` and `secure_aggregator`,
      whose clients clip before they change their states; or an aggregator whose
      class says `is_exact_mean = True`.
    client_optimizer_fn: A TFF optimizer for the local steps, such as
      `tff.learning.optimizers.build_adam(0.1)`. By default the paper's plain
      SGD, the only one for Scaf. A `learning_rate` must be the optimizer's own,
      and a `learning_rate_fn` must begin with it.
    server_optimizer_fn: A TFF optimizer that applies the mean update to the
      model; by default it is added. Not for Dyn, whose server step is part of
      its mathematics.
    max_update_norm: C, by default none. A client clips its update u = w_i - w^t
      to u min(1, C / ‖u‖), all layers together, and then takes w_i = w^t + u.
      So its own state λ_i or c_i moves by just what it sends.
    metrics_aggregator: How TFF's builders take it; by default
      `tff.learning.metrics.sum_then_finalize`. It aggregates the `train`
      metrics. If it sums securely, as `secure_sum_then_finalize`, all else that
      clients report is summed securely too. `runtime.local_context` simulates
      secure sums.
    jit_compile: Whether XLA compiles all steps of a client together. A small
      dense network gains; a convolution on a CPU loses a factor of 2. All
      batches must have the same size: the model's `input_spec` names it.

  Returns:
    A `tff.learning.templates.LearningProcess`.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range, or missing for this method.
  """
  algorithm = algorithm_lib.Algorithm(
    models.as_model(model),
    personalization,
    correction,
    max_grad_norm,
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    num_clients=num_clients,
    storage=storage,
    track_all=track_all,
    model_aggregator=model_aggregator,
    client_optimizer_fn=client_optimizer_fn,
    server_optimizer_fn=server_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=metrics_aggregator,
    jit_compile=jit_compile,
  )
  algorithm.check_population()
  process = _build_process(algorithm)
  if algorithm.keeps_state:
    # Last: a call that fails leaves no folder behind.
    algorithm.client_storage.make_folder()
  return process


def exponential_decay(
  learning_rate: float, decay: float
) -> algorithm_lib.LearningRateFn:
  """The learning rate β_t = β · decay^t of the paper.

  Args:
    learning_rate: β.
    decay: The factor of each round; 0.997 in the paper.

  Returns:
    A `learning_rate_fn`.

  Raises:
    ValueError: If an argument is not a positive finite number.
  """
  checks.check_number('learning_rate', learning_rate, positive=True)
  checks.check_number('decay', decay, positive=True)
  return lambda round_num: (
    learning_rate * tf.pow(float(decay), tf.cast(round_num, tf.float32))
  )


def get_all_model_weights(state: State) -> models.ModelWeights:
  """The model *all* of a process built with `track_all`.

  Args:
    state: A state of the process, as `next` returned it.

  Returns:
    `tff.learning.models.ModelWeights` of NumPy arrays: the mean over all m
    clients of each one's newest w_i, and of the initial model for a client that
    never took part.

  Raises:
    ValueError: If the process does not keep the model *all*.
  """
  finalizer = state.finalizer
  if not finalizer['initial']:
    raise ValueError(
      'This process does not keep the model all: build it with track_all=True.'
    )
  weights = corrections.all_model(
    finalizer['mean_states'][-1], finalizer['initial']
  )
  return models.ModelWeights(
    tuple(np.asarray(w, np.float32) for w in weights),
    state.global_model_weights.non_trainable,
  )


class _Sent(NamedTuple):
  """What every client receives; the last two are `()` if it keeps no state."""

  broadcast: algorithm_lib.Broadcast
  lineage: storage_lib.Lineage
  token: tf.Tensor


class _Counts(NamedTuple):
  """Nonnegative integers of a client that the server sums, or their sums.

  Whether it is a client, has data, took a step, and participates, which is to
  say that the result is finite. The last two are 0 if the client keeps no
  state: whether it had none before, and what `ClientStorage.write` returned.
  """

  clients: Any
  with_data: Any
  stepped: Any
  participants: Any
  num_new: Any
  fingerprint: Any


_MAX_COUNTS = _Counts(1, 1, 1, 1, 1, 2**31)


class _Report(NamedTuple):
  """What a client reports of its work, or the sum of all reports.

  `metrics` are the unfinalized ones of a client, and the finalized ones of all.
  """

  counts: _Counts
  correction_norm: Any
  metrics: Any


class _Work(NamedTuple):
  """The outcome of a client's work.

  It uploads its update and then the changes of its states that are sent, all
  the tensors in one tuple. `weight` is its weight in the means.
  """

  upload: tuple[tf.Tensor, ...]
  weight: tf.Tensor
  report: _Report


def _build_process(
  algorithm: algorithm_lib.Algorithm,
) -> tff.learning.templates.LearningProcess:
  """A round from top to bottom, of the functions that follow below."""
  upload_type = _upload_type(algorithm)
  aggregator = aggregation.build_mean(algorithm.model_aggregator, upload_type)
  if algorithm.keeps_state:
    aggregation.check_exact(
      algorithm.model_aggregator,
      algorithm.models_up > 1,
      algorithm.state_reason,
    )
  client_type = tff.SequenceType(
    tff.types.tensorflow_to_type(algorithm.model.input_spec)
  )
  if algorithm.keeps_state:
    client_type = tff.to_type(
      collections.OrderedDict(client_id=np.str_, data=client_type)
    )

  @tff.tensorflow.computation(
    aggregator.initialize.type_signature.result.member
  )
  def initial_state(aggregator_state):
    return _initial_state(algorithm, aggregator_state)

  @tff.federated_computation
  def initialize():
    return tff.federated_map(initial_state, aggregator.initialize())

  state_type = initialize.type_signature.result

  @models.computation(state_type.member)
  def server_broadcast(state):
    return _server_broadcast(algorithm, state)

  @models.computation(server_broadcast.type_signature.result, client_type)
  def client_work(sent, client):
    if not algorithm.keeps_state:
      return _client_work(algorithm, sent, None, client)
    return _client_work(algorithm, sent, client['client_id'], client['data'])

  sum_reports = _build_sum(algorithm, client_work.type_signature.result.report)
  aggregated_type = aggregator.next.type_signature.result

  @models.computation(
    state_type.member,
    aggregated_type.state.member,
    aggregated_type.result.member,
    aggregated_type.measurements.member,
    sum_reports.type_signature.result.member,
  )
  def finish_round(state, aggregator_state, means, measurements, report):
    return _finish_round(
      algorithm, state, aggregator_state, means, measurements, report
    )

  @tff.federated_computation(
    state_type, tff.FederatedType(client_type, tff.CLIENTS)
  )
  def next_fn(state, client_data):
    sent = tff.federated_map(server_broadcast, state)
    work = tff.federated_map(
      client_work, (tff.federated_broadcast(sent), client_data)
    )
    aggregated = aggregator.next(state.aggregator, work.upload, work.weight)
    new_state, metrics = tff.federated_map(
      finish_round,
      (
        state,
        aggregated.state,
        aggregated.result,
        aggregated.measurements,
        sum_reports(work.report),
      ),
    )
    return tff.learning.templates.LearningProcessOutput(new_state, metrics)

  process = tff.learning.templates.LearningProcess(
    initialize, next_fn, **_build_accessors(algorithm, state_type.member)
  )
  return training.with_batches_per_step(
    process, algorithm.personalization.batches_per_step
  )


def _upload_type(algorithm: algorithm_lib.Algorithm) -> tff.StructType:
  """The type of `_Work.upload`."""
  weights = algorithm.model.initial_weights.trainable
  changes = algorithm_lib.initial_states(algorithm, weights)
  sent = algorithm_lib.sent_changes(algorithm, changes)
  return tff.types.tensorflow_to_type(
    models.specs_of((*weights, *tf.nest.flatten(sent)))
  )


def _build_accessors(
  algorithm: algorithm_lib.Algorithm, state_type: tff.StructType
) -> dict[str, tff.Computation]:
  """Builds the getters and setters of weights and of hyperparameters."""

  @tff.tensorflow.computation(state_type)
  def get_model_weights(state):
    return state.global_model_weights

  @tff.tensorflow.computation(state_type, state_type.global_model_weights)
  def set_model_weights(state, weights):
    finalizer = state.finalizer
    if algorithm.track_all:
      # `initial` is the model of clients that never took part. It follows the
      # model that is set, until a client has taken part.
      share = finalizer['mean_states'][-1][-1]
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

  return {
    'get_model_weights': get_model_weights,
    'set_model_weights': set_model_weights,
    'get_hparams_fn': get_hparams,
    'set_hparams_fn': set_hparams,
  }


def _initial_state(
  algorithm: algorithm_lib.Algorithm, aggregator_state: Any
) -> State:
  """The state before the first round."""
  weights = tf.nest.map_structure(tf.constant, algorithm.model.initial_weights)
  trainable, optimizer = weights.trainable, ()
  if algorithm.server_optimizer_fn is not None:
    optimizer = algorithm.server_optimizer_fn.initialize(
      tf.nest.map_structure(tf.TensorSpec.from_tensor, trainable)
    )
  hparams = collections.OrderedDict(
    weight_decay=tf.constant(float(algorithm.weight_decay))
  )
  if algorithm.learning_rate_fn is None:
    learning_rate = tf.constant(algorithm.constant_learning_rate)
    hparams = collections.OrderedDict(learning_rate=learning_rate, **hparams)
  return State(
    global_model_weights=weights,
    # How many clients were sent a model so far.
    distributor=collections.OrderedDict(clients=tf.constant(0, tf.int64)),
    client_work=collections.OrderedDict(
      round=tf.constant(0),
      hparams=hparams,
      lineage=storage_lib.start_lineage() if algorithm.keeps_state else (),
    ),
    aggregator=aggregator_state,
    finalizer=collections.OrderedDict(
      mean_states=algorithm_lib.initial_states(algorithm, trainable),
      optimizer=optimizer,
      initial=trainable if algorithm.track_all else (),
    ),
  )


def _server_state(state: State) -> algorithm_lib.ServerState:
  return algorithm_lib.ServerState(
    state.global_model_weights.trainable,
    state.finalizer['mean_states'],
    state.finalizer['optimizer'],
  )


def _server_broadcast(
  algorithm: algorithm_lib.Algorithm, state: State
) -> _Sent:
  """What the server sends."""
  hparams = state.client_work['hparams']
  if algorithm.learning_rate_fn is None:
    learning_rate = hparams['learning_rate']
  else:
    round_num = state.client_work['round']
    learning_rate = models.call(algorithm.learning_rate_fn, round_num)
  broadcast = algorithm_lib.broadcast(
    algorithm,
    _server_state(state),
    state.global_model_weights.non_trainable,
    tf.cast(learning_rate, tf.float32),
    hparams['weight_decay'],
  )
  token = storage_lib.new_token() if algorithm.keeps_state else ()
  return _Sent(broadcast, state.client_work['lineage'], token)


def _client_work(
  algorithm: algorithm_lib.Algorithm,
  sent: _Sent,
  client_id: tf.Tensor | None,
  dataset: tf.data.Dataset,
) -> _Work:
  """Reads the client's states, lets it work, and writes its new states.

  A client that keeps no state has no `client_id`.
  """
  states = algorithm_lib.initial_states(
    algorithm, sent.broadcast.model.trainable
  )
  is_new = tf.constant(False)
  if client_id is not None:
    stored, is_new = algorithm.client_storage.read(
      sent.lineage, client_id, tf.nest.flatten(states)
    )
    states = tf.nest.pack_sequence_as(states, stored)
  result = algorithm_lib.client_update(
    algorithm, sent.broadcast, states, dataset
  )
  is_included = result.is_included
  fingerprint = tf.constant(0, tf.int64)
  if client_id is not None:
    fingerprint = tf.cond(
      _check_num_steps(algorithm, client_id, result),
      lambda: algorithm.client_storage.write(
        sent.lineage, sent.token, client_id, tf.nest.flatten(result.states)
      ),
      lambda: tf.constant(0, tf.int64),
    )
    # Made of the write's result: TensorFlow's optimizer can remove a control
    # dependency, and the write with it.
    is_included = fingerprint > 0
  has_data = result.has_stepped
  if algorithm.personalization.batches_per_step > 1:
    has_data |= loops.has_data(dataset)
  participants, sums = tf.cast(is_included, tf.int32), result.sums
  return _Work(
    (*result.update, *tf.nest.flatten(result.state_changes)),
    tf.cast(is_included, tf.float32),
    _Report(
      _Counts(
        clients=tf.constant(1),
        with_data=tf.cast(has_data, tf.int32),
        stepped=tf.cast(result.has_stepped, tf.int32),
        participants=participants,
        num_new=participants * tf.cast(is_new, tf.int32),
        fingerprint=fingerprint,
      ),
      tf.where(is_included, _norm(result.states[0]), 0.0),
      collections.OrderedDict(
        loss=[sums.loss_sum, sums.num_examples],
        metrics=sums.metrics,
        num_examples=sums.num_examples,
      ),
    ),
  )


def _check_num_steps(
  algorithm: algorithm_lib.Algorithm,
  client_id: tf.Tensor,
  result: algorithm_lib.ClientUpdate,
) -> tf.Tensor:
  """`is_included`; fails if the client took a wrong number of local steps."""
  expected = algorithm.correction.num_steps
  if expected is None:
    return result.is_included
  num_steps = tf.cast(result.sums.num_steps, tf.int32)
  return checks.ensure(
    tf.equal(num_steps, expected) | ~result.is_included,
    [
      f'{algorithm.correction} needs {expected} local steps of every'
      ' participant, but this client took another number:',
      client_id,
      num_steps,
    ],
    result.is_included,
  )


def _build_sum(
  algorithm: algorithm_lib.Algorithm, report_type: tff.StructType
) -> tff.Computation:
  """Builds the sum of reports at the clients, with its metrics finalized.

  All of it is summed securely if the `metrics_aggregator` sums securely.
  """

  @models.outside
  def finalize(unfinalized):
    loss_sum, num_examples = unfinalized['loss']
    return collections.OrderedDict(
      loss=tf.math.divide_no_nan(loss_sum, num_examples),
      **algorithm.model.metrics.finalize(unfinalized['metrics']),
      num_examples=tf.cast(tf.round(unfinalized['num_examples']), tf.int32),
    )

  aggregate_fn = (
    algorithm.metrics_aggregator or tff.learning.metrics.sum_then_finalize
  )
  aggregate = aggregate_fn(finalize, report_type.metrics)

  @tff.federated_computation(
    tff.FederatedType(report_type.metrics, tff.CLIENTS)
  )
  def aggregate_metrics(metrics):
    return aggregate(metrics)

  try:
    tff.test.assert_not_contains_unsecure_aggregation(aggregate_metrics)
    is_secure = True
  except AssertionError:
    is_secure = False

  @tff.federated_computation(tff.FederatedType(report_type, tff.CLIENTS))
  def sum_reports(reports):
    if is_secure:
      # A count above its bound is an error.
      counts = tff.federated_secure_sum(reports.counts, _MAX_COUNTS)
      # The bound is the largest number that TFF's secure metrics add as well.
      correction_norm = tff.aggregators.secure_quantized_sum(
        reports.correction_norm, 0.0, 2.0**20 - 1
      )
    else:
      counts = tff.federated_sum(reports.counts)
      correction_norm = tff.federated_sum(reports.correction_norm)
    return tff.federated_zip(
      _Report(counts, correction_norm, aggregate_metrics(reports.metrics))
    )

  return sum_reports


def _finish_round(
  algorithm: algorithm_lib.Algorithm,
  state: State,
  aggregator_state: Any,
  means: tuple[tf.Tensor, ...],
  measurements: Any,
  report: _Report,
) -> tuple[State, collections.OrderedDict[str, Any]]:
  """The server's new state and the metrics of the round."""
  sent = _server_broadcast(algorithm, state).broadcast
  counts = _check_progress(algorithm, state, sent, report.counts)
  server = _server_state(state)
  means = aggregation.of_participants(
    algorithm.model_aggregator, means, counts.clients, counts.participants
  )
  update, changes = tf.nest.pack_sequence_as(
    (
      server.weights,
      algorithm_lib.sent_changes(algorithm, server.mean_states),
    ),
    means,
  )
  participants = tf.cast(counts.participants, tf.float32)
  new = algorithm_lib.server_update(
    algorithm,
    server,
    sent,
    update,
    changes,
    share=participants / float(algorithm.num_clients or 1),
    turnout=participants / (algorithm.num_planned or participants),
  )
  # A round without participants changes nothing. Some aggregators divide by
  # zero in such a round, for their result and for their state.
  new, aggregator_state = tf.nest.map_structure(
    lambda after, before: tf.where(participants > 0, after, before),
    (new, aggregator_state),
    (server, state.aggregator),
  )
  clients = state.distributor['clients'] + tf.cast(counts.clients, tf.int64)
  new_state = State(
    models.ModelWeights(new.weights, state.global_model_weights.non_trainable),
    collections.OrderedDict(clients=clients),
    collections.OrderedDict(
      state.client_work,
      round=state.client_work['round'] + 1,
      lineage=_next_lineage(algorithm, state.client_work['lineage'], counts),
    ),
    aggregator_state,
    collections.OrderedDict(
      state.finalizer, mean_states=new.mean_states, optimizer=new.optimizer
    ),
  )
  model_bytes = sum(w.nbytes for w in algorithm.model.initial_weights.trainable)

  def traffic(models_per_client: int) -> dict[str, tf.Tensor]:
    num_models = clients * models_per_client
    return {'models': num_models, 'bytes': num_models * model_bytes}

  metrics = collections.OrderedDict(
    distributor=collections.OrderedDict(traffic(algorithm.models_down)),
    client_work=collections.OrderedDict(
      train=report.metrics,
      participants=counts.participants,
      left_out=counts.clients - counts.participants,
      correction_norm=tf.math.divide_no_nan(
        report.correction_norm, participants
      ),
    ),
    aggregator=collections.OrderedDict(
      traffic(algorithm.models_up),
      update=measurements,
    ),
    finalizer=collections.OrderedDict(
      update_norm=tf.where(participants > 0, _norm(update), 0.0),
      server_correction_norm=_norm(new.mean_states[0]),
    ),
  )
  return new_state, metrics


def _check_progress(
  algorithm: algorithm_lib.Algorithm,
  state: State,
  sent: algorithm_lib.Broadcast,
  counts: _Counts,
) -> _Counts:
  """The counts; fails if clients have data, but none of them participates."""
  round_num = tf.strings.as_string(state.client_work['round'] + 1)
  rate = tf.strings.as_string(sent.learning_rate, shortest=True)
  size = algorithm.personalization.batches_per_step
  reason = tf.where(
    counts.stepped > 0,
    tf.strings.join(
      [
        'no client has a finite update after local steps with the learning'
        ' rate ',
        rate,
        '. Take a smaller one, or look for data that are not finite.',
      ]
    ),
    f'no client took a local step. A step takes {size} batches, or one batch of'
    f' at least {size} examples whose size input_spec leaves open: make smaller'
    ' batches, or repeat the data.',
  )
  return checks.ensure(
    (counts.participants > 0) | (counts.with_data == 0),
    [tf.strings.join(['Round ', round_num, ': ', reason])],
    counts,
  )


def _next_lineage(
  algorithm: algorithm_lib.Algorithm,
  lineage: storage_lib.Lineage,
  counts: _Counts,
) -> storage_lib.Lineage | tuple[()]:
  """The lineage after the round, if clients keep states."""
  if not algorithm.keeps_state:
    return ()
  lineage = algorithm.client_storage.finish_round(
    lineage, counts.participants, counts.num_new, counts.fingerprint
  )
  return checks.ensure(
    lineage.num_clients <= algorithm.num_clients,
    [
      f'num_clients={algorithm.num_clients} is too small. Number of clients'
      ' that have taken part:',
      lineage.num_clients,
    ],
    lineage,
  )


def _norm(tensors: Any) -> tf.Tensor:
  """The norm of all tensors together; 0 of none."""
  return tf.linalg.global_norm([tf.zeros([]), *tensors])
