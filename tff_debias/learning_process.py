"""The methods as TFF learning processes: broadcast, work, aggregation."""

import collections
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math
import numbers
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import corrections as corrections_lib
from tff_debias import local_training
from tff_debias import models
from tff_debias import personalizations
from tff_debias import storage as storage_lib

_UPLOADS = ('update', 'message', 'newest')
_HPARAMS = ('learning_rate', 'weight_decay')

AggregationFactory = (
  tff.aggregators.WeightedAggregationFactory
  | tff.aggregators.UnweightedAggregationFactory
)
State = tff.learning.templates.LearningAlgorithmState


def build_learning_process(
  model: models.Model,
  personalization: personalizations.Personalization,
  correction: corrections_lib.Correction,
  *,
  learning_rate: float = 0.1,
  learning_rate_schedule: Callable[[tf.Tensor], tf.Tensor] | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float = 10.0,
  num_clients: int | None = None,
  storage: storage_lib.ClientStorage | None = None,
  track_all: bool = False,
  aggregator: AggregationFactory | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
) -> tff.learning.templates.LearningProcess:
  """Builds the learning process of any personalization and any correction.

  `next` takes the state and, for each participant, an `OrderedDict` of its
  `client_id` (a string) and its `data` (batches, shuffled and repeated by the
  caller; consecutive ones are support and query, and one local step). A device
  is given once a round. Ids are bytes, or ASCII without a NUL at the end. Its
  metrics are an `OrderedDict` of scalars, see the README.

  `get_model_weights` gives the *selected* model, mean_S w_i, as
  `tff.learning.models.ModelWeights`; `get_all_model_weights` gives *all*.
  `set_model_weights` sets it and leaves corrections as they are. The
  hyperparameters are `learning_rate` and `weight_decay`.

  Args:
    model: The model, see `models.from_keras`.
    personalization: T_i.
    correction: R_i. What distinguishes one of your own must be in its `repr`,
      as in a dataclass: with it the device storage knows its own.
    learning_rate: β, of the local steps.
    learning_rate_schedule: A function of the number of rounds done (an int32
      scalar, 0 in the first round) that gives a factor (a float32 scalar):
      β_t = β · factor. See `exponential_decay`.
    weight_decay: wd, applied after the clipping.
    max_grad_norm: The bound on the norm of the corrected gradient, all layers
      together; `math.inf` for none.
    num_clients: m, the number of devices in the population. Needed by
      corrections and by `track_all`.
    storage: Where devices keep their state. Needed likewise.
    track_all: Whether the model *all* is kept: the mean over all devices of
      each one's newest w_i. It costs a second state per device and a second
      model up.
    aggregator: How updates become a mean (not a sum), by default
      `tff.aggregators.MeanFactory`. An unweighted factory sees zeros from a
      device that is left out; its result is scaled to the mean of the others.
    server_optimizer_fn: Applies the mean update to the model, by default by adding
      it. Not for Dyn, whose server step is part of its mathematics.

  Returns:
    A `tff.learning.templates.LearningProcess`.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range, or missing for this method.
  """
  _check_type('model', model, models.Model)
  _check_type(
    'personalization', personalization, personalizations.Personalization
  )
  _check_type('correction', correction, corrections_lib.Correction)
  _check_number('learning_rate', learning_rate, positive=True)
  _check_number('weight_decay', weight_decay)
  _check_number('max_grad_norm', max_grad_norm, positive=True, finite=False)
  if learning_rate_schedule is not None and not callable(
    learning_rate_schedule
  ):
    raise TypeError(
      'learning_rate_schedule must be a function of the number of rounds done,'
      f' such as exponential_decay(0.997), got {learning_rate_schedule!r}.'
    )
  personalization.check_model(model)
  if server_optimizer_fn is not None:
    _check_type(
      'server_optimizer_fn',
      server_optimizer_fn,
      tff.learning.optimizers.Optimizer,
    )
    if not correction.allows_server_optimizer:
      raise ValueError(
        f'{correction} has a server step of its own: server_optimizer_fn must be'
        ' None.'
      )
  method = _Method(
    model,
    personalization,
    correction,
    float(learning_rate),
    learning_rate_schedule or (lambda _: 1.0),
    float(weight_decay),
    float(max_grad_norm),
    num_clients,
    storage,
    track_all,
    server_optimizer_fn,
  )
  keeps_state = track_all or method.device_state_size > 0
  _check_population(method, keeps_state)
  process = _compose(method, aggregator)
  # The last step: a call that fails leaves no folder behind that is claimed.
  if keeps_state:
    storage.claim(
      {
        'correction': repr(correction),
        'personalization': repr(personalization),
        'model': [[w.shape, w.dtype.name] for w in method.weights.trainable],
        'tracks_all': track_all,
        'num_clients': int(num_clients),
      }
    )
  return process


def get_all_model_weights(state: State) -> models.ModelWeights:
  """The model *all* of a process built with `track_all`.

  It is the mean over all m devices of each one's newest w_i, the initial model
  where it never took part.

  Args:
    state: A state of the process, as `next` returned it.

  Returns:
    `tff.learning.models.ModelWeights` of NumPy arrays.

  Raises:
    ValueError: If the process does not track the model.
  """
  tracked = state.finalizer['all']
  if not tracked:
    raise ValueError(
      'This process does not keep the model all: build it with track_all.'
    )
  trainable = tuple(
    np.asarray(seen + tracked['share_never'] * initial, np.float32)
    for seen, initial in zip(tracked['seen'], tracked['initial'], strict=True)
  )
  return models.ModelWeights(
    trainable, state.global_model_weights.non_trainable
  )


def exponential_decay(rate: float) -> Callable[[tf.Tensor], tf.Tensor]:
  """The learning-rate schedule β_t = β · rate^t of the paper."""
  _check_number('rate', rate, positive=True)
  return lambda round_num: tf.pow(rate, tf.cast(round_num, tf.float32))


@dataclasses.dataclass(frozen=True)
class _Method:
  """The arguments of `build_learning_process`, and what follows from them."""

  model: models.Model
  personalization: personalizations.Personalization
  correction: corrections_lib.Correction
  learning_rate: float
  learning_rate_schedule: Callable[[tf.Tensor], tf.Tensor]
  weight_decay: float
  max_grad_norm: float
  num_clients: int | None
  storage: storage_lib.ClientStorage | None
  track_all: bool
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None

  @property
  def weights(self) -> models.ModelWeights:
    return self.model.initial_weights

  @property
  def device_state_size(self) -> int:
    """The number of tensors in the correction's device state."""
    return self._state_size(self.correction.initial_state)

  @property
  def server_state_size(self) -> int:
    """The number of tensors in the correction's server state."""
    return self._state_size(self.correction.initial_server_state)

  def _state_size(self, initial_state: Callable[..., Any]) -> int:
    with tf.Graph().as_default():
      weights = tf.nest.map_structure(tf.constant, self.weights.trainable)
      return len(initial_state(weights))

  def initial_state(self, aggregator_state: Any) -> State:
    """The state before the first round."""
    weights = tf.nest.map_structure(tf.constant, self.weights)
    trainable = weights.trainable
    optimizer_state = ()
    if self.server_optimizer_fn is not None:
      specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, trainable)
      optimizer_state = self.server_optimizer_fn.initialize(specs)
    tracked = ()
    if self.track_all:
      tracked = collections.OrderedDict(
        seen=tf.nest.map_structure(tf.zeros_like, trainable),
        share_never=tf.constant(1.0),
        initial=trainable,
      )
    return State(
      global_model_weights=weights,
      distributor=_no_transfer(),
      client_work=collections.OrderedDict(
        round=tf.constant(0),
        learning_rate=tf.constant(self.learning_rate),
        weight_decay=tf.constant(self.weight_decay),
      ),
      aggregator=collections.OrderedDict(
        process=aggregator_state, transfer=_no_transfer()
      ),
      finalizer=collections.OrderedDict(
        correction=self.correction.initial_server_state(trainable),
        optimizer=optimizer_state,
        all=tracked,
      ),
    )

  def broadcast(
    self,
    weights: models.ModelWeights,
    client_work: collections.OrderedDict[str, tf.Tensor],
    correction_state: Any,
  ) -> collections.OrderedDict[str, Any]:
    """What the server sends to every participant: w^t, and what goes along."""
    round_num = client_work['round']
    factor = tf.cast(self.learning_rate_schedule(round_num), tf.float32)
    return collections.OrderedDict(
      model=models.ModelWeights(
        self.correction.broadcast_model(weights.trainable, correction_state),
        weights.non_trainable,
      ),
      message=self.correction.server_message(correction_state),
      round=round_num + 1,
      learning_rate=client_work['learning_rate'] * factor,
      weight_decay=client_work['weight_decay'],
    )

  def client_work(
    self,
    received: collections.OrderedDict[str, Any],
    client: collections.OrderedDict[str, Any],
  ) -> collections.OrderedDict[str, Any]:
    """The device's part: its stored state, its local steps, its new state."""
    start = received['model']
    stored = self._initial_stored(start.trainable)
    flat = tf.nest.flatten(stored)
    is_known = tf.constant(False)
    if flat:
      is_known, flat = self.storage.read(
        client['client_id'], received['round'], flat
      )
      stored = tf.nest.pack_sequence_as(stored, flat)
    result = local_training.train(
      self.model,
      self.personalization,
      self.correction,
      local_training.Hyperparameters(
        received['learning_rate'],
        received['weight_decay'],
        tf.constant(self.max_grad_norm),
      ),
      start,
      received['message'],
      stored['correction'],
      client['data'],
    )
    new_stored = {'correction': result.device_state, 'newest': ()}
    uploads = collections.OrderedDict(
      update=result.update, message=result.message, newest=()
    )
    if self.track_all:
      newest = tf.nest.map_structure(tf.add, start.trainable, result.update)
      new_stored['newest'] = newest
      uploads['newest'] = tf.nest.map_structure(
        lambda new, old: tf.where(result.counts, new - old, tf.zeros_like(new)),
        newest,
        stored['newest'],
      )
    # What is returned is made of the write's result: TensorFlow's optimizer can
    # remove a control dependency, and the write with it.
    written = result.counts
    if flat:
      written = tf.cond(
        result.counts,
        lambda: self.storage.write(
          client['client_id'],
          received['round'],
          tf.nest.flatten(new_stored),
        ),
        lambda: tf.constant(False),
      )
    counts = tf.cast(written, tf.float32)
    report = collections.OrderedDict(
      devices=tf.constant(1.0),
      participants=counts,
      new_devices=counts * (1.0 - tf.cast(is_known, tf.float32)),
      correction_norm=counts
      * tf.linalg.global_norm([tf.zeros([]), *result.device_state]),
      loss_sum=result.loss_sum,
      num_examples=result.num_examples,
      metrics=result.metrics,
    )
    return collections.OrderedDict(uploads=uploads, report=report)

  def _initial_stored(self, weights: corrections_lib.Weights) -> dict[str, Any]:
    """The stored state of a device that never took part."""
    return {
      'correction': self.correction.initial_state(weights),
      'newest': (
        tf.nest.map_structure(tf.zeros_like, weights) if self.track_all else ()
      ),
    }

  def server_update(
    self,
    state: State,
    means: collections.OrderedDict[str, Any],
    report: collections.OrderedDict[str, Any],
  ) -> State:
    """The server's part: the next model and h."""
    weights = state.global_model_weights
    correction_state = state.finalizer['correction']
    start = self.correction.broadcast_model(weights.trainable, correction_state)
    optimizer_state = state.finalizer['optimizer']
    if self.server_optimizer_fn is None:
      new_weights = tf.nest.map_structure(tf.add, start, means['update'])
    else:
      optimizer_state, new_weights = self.server_optimizer_fn.next(
        optimizer_state,
        start,
        tf.nest.map_structure(tf.negative, means['update']),
      )
    num_clients = tf.constant(float(self.num_clients or 1))
    share = report['participants'] / num_clients
    finalizer = collections.OrderedDict(
      correction=self.correction.update_server(
        correction_state, means['update'], means['message'], share
      ),
      optimizer=optimizer_state,
      all=(),
    )
    if self.track_all:
      tracked = state.finalizer['all']
      finalizer['all'] = collections.OrderedDict(
        seen=tf.nest.map_structure(
          lambda seen, change: seen + share * change,
          tracked['seen'],
          means['newest'],
        ),
        share_never=tracked['share_never']
        - report['new_devices'] / num_clients,
        initial=tracked['initial'],
      )
    # A round in which nobody counts leaves everything as it was.
    new_weights, finalizer = tf.nest.map_structure(
      lambda new, old: tf.where(report['participants'] > 0, new, old),
      (new_weights, finalizer),
      (weights.trainable, state.finalizer),
    )
    return state._replace(
      global_model_weights=models.ModelWeights(
        new_weights, weights.non_trainable
      ),
      finalizer=finalizer,
    )

  def round_metrics(
    self,
    new_state: State,
    means: collections.OrderedDict[str, Any],
    report: collections.OrderedDict[str, Any],
  ) -> collections.OrderedDict[str, Any]:
    """The metrics of a round, in the shape of TFF's learning processes."""

    def mean(total: str, weight: str) -> tf.Tensor:
      return tf.math.divide_no_nan(report[total], report[weight])

    def count(name: str) -> tf.Tensor:
      return tf.cast(report[name], tf.int32)

    return collections.OrderedDict(
      distributor=new_state.distributor,
      client_work=collections.OrderedDict(
        train=collections.OrderedDict(
          loss=mean('loss_sum', 'num_examples'),
          **self.model.metrics.finalize(report['metrics']),
          num_examples=count('num_examples'),
        ),
        participants=count('participants'),
        left_out=count('devices') - count('participants'),
        correction_norm=mean('correction_norm', 'participants'),
      ),
      aggregator=new_state.aggregator['transfer'],
      finalizer=collections.OrderedDict(
        update_norm=tf.linalg.global_norm(means['update']),
        server_correction_norm=tf.linalg.global_norm(
          [tf.zeros([]), *new_state.finalizer['correction']]
        ),
      ),
    )


def _compose(
  method: _Method, factory: AggregationFactory | None
) -> tff.learning.templates.LearningProcess:
  """The federated computations around the parts of a method."""
  batch_type = tff.types.tensorflow_to_type(method.model.input_spec)
  client_type = tff.to_type(
    collections.OrderedDict(
      client_id=np.str_, data=tff.SequenceType(batch_type)
    )
  )

  @tff.tensorflow.computation
  def broadcast_inputs():
    state = method.initial_state(())
    return (
      state.global_model_weights,
      state.client_work,
      state.finalizer['correction'],
    )

  @tff.tensorflow.computation(*broadcast_inputs.type_signature.result)
  def make_broadcast(weights, client_work, correction_state):
    return method.broadcast(weights, client_work, correction_state)

  broadcast_type = make_broadcast.type_signature.result

  @tff.tensorflow.computation(broadcast_type, client_type)
  def client_work(received, client):
    return method.client_work(received, client)

  uploads_type = client_work.type_signature.result.uploads
  report_type = client_work.type_signature.result.report
  sent = [name for name in _UPLOADS if len(getattr(uploads_type, name))]
  factory = factory or tff.aggregators.MeanFactory(no_nan_division=True)
  aggregators = {
    name: _create_aggregator(factory, getattr(uploads_type, name))
    for name in sent
  }
  is_weighted = isinstance(factory, tff.aggregators.WeightedAggregationFactory)

  @tff.federated_computation
  def initial_aggregator_state():
    return tff.federated_zip(
      collections.OrderedDict(
        (name, aggregators[name].initialize()) for name in sent
      )
    )

  aggregator_state_type = initial_aggregator_state.type_signature.result.member

  @tff.tensorflow.computation(aggregator_state_type)
  def initial_state(aggregator_state):
    return method.initial_state(aggregator_state)

  @tff.federated_computation
  def initialize():
    return tff.federated_map(initial_state, initial_aggregator_state())

  state_type = initialize.type_signature.result.member
  means_type = tff.to_type(
    collections.OrderedDict(
      (name, getattr(uploads_type, name)) for name in sent
    )
  )

  @tff.tensorflow.computation(
    state_type, aggregator_state_type, means_type, report_type
  )
  def finish_round(state, aggregator_state, means, report):
    means = collections.OrderedDict(
      (name, means[name] if name in sent else ()) for name in _UPLOADS
    )
    if not is_weighted:
      scale = tf.math.divide_no_nan(report['devices'], report['participants'])
      means = tf.nest.map_structure(lambda mean: mean * scale, means)
    # Where nobody counts, some aggregators divide by zero, in their states too.
    means, aggregator_state = tf.nest.map_structure(
      lambda new, old: tf.where(report['participants'] > 0, new, old),
      (means, aggregator_state),
      (
        tf.nest.map_structure(tf.zeros_like, means),
        state.aggregator['process'],
      ),
    )
    new_state = method.server_update(state, means, report)
    model_type = broadcast_type.model.trainable
    down = _transfer(
      state.distributor,
      report['devices'],
      model_type,
      tff.to_type((model_type, broadcast_type.message)),
      [broadcast_type],
    )
    up = _transfer(
      state.aggregator['transfer'],
      report['devices'],
      model_type,
      uploads_type,
      [uploads_type, report_type],
    )
    new_state = new_state._replace(
      distributor=down,
      client_work=collections.OrderedDict(
        state.client_work, round=state.client_work['round'] + 1
      ),
      aggregator=collections.OrderedDict(process=aggregator_state, transfer=up),
    )
    return new_state, method.round_metrics(new_state, means, report)

  @tff.federated_computation(
    tff.FederatedType(state_type, tff.SERVER),
    tff.FederatedType(client_type, tff.CLIENTS),
  )
  def next_fn(state, client_data):
    to_send = (
      state.global_model_weights,
      state.client_work,
      state.finalizer.correction,
    )
    broadcast = tff.federated_broadcast(
      tff.federated_map(make_broadcast, to_send)
    )
    work = tff.federated_map(client_work, (broadcast, client_data))
    outputs = {}
    for name in sent:
      arguments = (state.aggregator.process[name], work.uploads[name])
      if is_weighted:
        arguments += (work.report.participants,)
      outputs[name] = aggregators[name].next(*arguments)
    new_state, metrics = tff.federated_map(
      finish_round,
      (
        state,
        _zip({name: outputs[name].state for name in sent}),
        _zip({name: outputs[name].result for name in sent}),
        tff.federated_sum(work.report),
      ),
    )
    return tff.learning.templates.LearningProcessOutput(new_state, metrics)

  weights_type = state_type.global_model_weights
  hparams_type = tff.to_type(
    collections.OrderedDict(learning_rate=np.float32, weight_decay=np.float32)
  )

  @tff.tensorflow.computation(state_type)
  def get_model_weights(state):
    return state.global_model_weights

  @tff.tensorflow.computation(state_type, weights_type)
  def set_model_weights(state, weights):
    finalizer = state.finalizer
    if method.track_all:
      # Once devices have taken part, their first model is what it was.
      tracked = finalizer['all']
      initial = tf.nest.map_structure(
        lambda new, old: tf.where(tracked['share_never'] < 1.0, old, new),
        weights.trainable,
        tracked['initial'],
      )
      tracked = collections.OrderedDict(tracked, initial=initial)
      finalizer = collections.OrderedDict(finalizer, all=tracked)
    return state._replace(global_model_weights=weights, finalizer=finalizer)

  @tff.tensorflow.computation(state_type)
  def get_hparams(state):
    return collections.OrderedDict(
      (name, state.client_work[name]) for name in _HPARAMS
    )

  @tff.tensorflow.computation(state_type, hparams_type)
  def set_hparams(state, hparams):
    return state._replace(
      client_work=collections.OrderedDict(state.client_work, **hparams)
    )

  return tff.learning.templates.LearningProcess(
    initialize,
    next_fn,
    get_model_weights,
    set_model_weights,
    get_hparams_fn=get_hparams,
    set_hparams_fn=set_hparams,
  )


def _zip(values: dict[str, Any]) -> Any:
  return tff.federated_zip(collections.OrderedDict(values))


def _create_aggregator(
  factory: AggregationFactory, value_type: tff.Type
) -> tff.templates.AggregationProcess:
  if isinstance(factory, tff.aggregators.WeightedAggregationFactory):
    process = factory.create(value_type, tff.TensorType(np.float32))
  elif isinstance(factory, tff.aggregators.UnweightedAggregationFactory):
    process = factory.create(value_type)
  else:
    raise TypeError(
      'aggregator must be a tff.aggregators factory, got'
      f' {type(factory).__name__}.'
    )
  result_type = process.next.type_signature.result.result.member
  if not value_type.is_equivalent_to(result_type):
    raise TypeError(
      'aggregator must keep the type of what it aggregates, but it makes'
      f' {result_type} of {value_type}.'
    )
  return process


def _no_transfer() -> collections.OrderedDict[str, tf.Tensor]:
  return collections.OrderedDict(
    models=tf.constant(0.0, tf.float64), bytes=tf.constant(0, tf.int64)
  )


def _transfer(
  total: collections.OrderedDict[str, tf.Tensor],
  num_clients: tf.Tensor,
  model_type: tff.Type,
  models_type: tff.Type,
  all_types: Sequence[tff.Type],
) -> collections.OrderedDict[str, tf.Tensor]:
  """Adds one round's transfer, in one direction, to the total.

  Args:
    total: The models (in units of one) and bytes sent so far.
    num_clients: The number of devices that took part in the transfer.
    model_type: The type of one model.
    models_type: The type of what counts as models.
    all_types: The types of all that one device receives or sends.

  Returns:
    The new total.
  """
  num_models = _size(models_type)[0] / _size(model_type)[0]
  num_bytes = sum(_size(part)[1] for part in all_types)
  return collections.OrderedDict(
    models=total['models'] + tf.cast(num_clients, tf.float64) * num_models,
    bytes=total['bytes'] + tf.cast(num_clients, tf.int64) * num_bytes,
  )


def _size(value_type: tff.Type) -> tuple[int, int]:
  """The number of elements, and of bytes, of a value of the type."""
  tensors = []
  tff.types.structure_from_tensor_type_tree(tensors.append, value_type)
  elements = [math.prod(tensor.shape) for tensor in tensors]
  sizes = [tensor.dtype.itemsize for tensor in tensors]
  return sum(elements), sum(map(math.prod, zip(elements, sizes, strict=True)))


def _check_type(name: str, value: Any, expected: type[Any]) -> None:
  if not isinstance(value, expected):
    raise TypeError(
      f'{name} must be a {expected.__module__}.{expected.__qualname__}, got'
      f' {value!r}.'
    )


def _check_number(
  name: str, value: Any, *, positive: bool = False, finite: bool = True
) -> None:
  is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if (
    not is_number
    or math.isnan(value)
    or value < 0
    or (positive and value == 0)
    or (finite and math.isinf(value))
  ):
    raise ValueError(
      f'{name} must be a {"positive" if positive else "nonnegative"}'
      f'{" finite" if finite else ""} number, got {value!r}.'
    )


def _check_population(method: _Method, keeps_state: bool) -> None:
  what = 'track_all' if method.track_all else f'{method.correction}'
  if (keeps_state or method.server_state_size) and (
    not isinstance(method.num_clients, numbers.Integral)
    or isinstance(method.num_clients, bool)
    or method.num_clients < 1
  ):
    raise ValueError(
      f'{what} needs num_clients, the number of devices in the population (a'
      f' positive integer), got {method.num_clients!r}.'
    )
  if keeps_state and not isinstance(method.storage, storage_lib.ClientStorage):
    raise ValueError(
      f'{what} keeps a state on every device and needs storage, a'
      f' ClientStorage(folder), got {method.storage!r}.'
    )
