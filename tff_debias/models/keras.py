"""Makes Keras models pure functions of their weights."""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import concurrent.futures
import contextlib
import contextvars
import dataclasses
import inspect
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks
from tff_debias.models import model as model_lib
from tff_debias.models import randomness


def from_keras(
  keras_model: tf.keras.Model | Callable[[], tf.keras.Model],
  loss: Callable[[Any, Any], tf.Tensor],
  input_spec: Any,
  metrics: Any = None,
  feature_layer: str | None = None,
) -> model_lib.Model:
  """Makes a `Model` of a Keras model.

  The network is built again wherever it is traced, with tensors in the place
  of its variables (as `tff.learning.models.functional_model_from_keras` does),
  which keeps a gradient of any order in one graph.

  Args:
    keras_model: A built `tf.keras.Model` (functional or sequential), whose
      present weights are the initial ones, or a function without arguments that
      builds one. A subclassed model has to be given as a function.
    loss: A `tf.keras.losses.Loss` or a function `(y_true, y_pred) -> tensor`.
      A tensor with a value per example is averaged.
    input_spec: The `tf.TensorSpec`s of a batch: `(x, y)` or `{'x':, 'y':}`.
    metrics: What `tff.learning.metrics.create_functional_metric_fns` takes: a
      function that returns a list or an `OrderedDict` of Keras metrics, or an
      `OrderedDict` of metric constructors. By default none: only the loss.
    feature_layer: The name of the layer whose output is the feature of the
      prototypes. By default the feature is the input of the last layer that has
      weights. A subclassed model does not say which layer is its last: there
      the feature is `None` by default.

  Returns:
    A `Model`.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If the model cannot be a pure function of its weights, with what
      to use instead; if there is no layer `feature_layer`; if the input
      specification is not that of a batch.
  """
  model_lib.check_input_spec(input_spec)
  _check_loss(loss)
  x_spec = model_lib.split_batch(input_spec)[0]
  build, eager_model = _builder(keras_model, x_spec)
  _check_layers(eager_model)
  place = place_of_feature(eager_model, feature_layer)
  order, adapted = _creation_order(build, eager_model, x_spec)
  network = _Network(build, x_spec, order, adapted, place, feature_layer)
  initial_weights = _weights(eager_model)
  with _explained(eager_model):
    apply, is_random = randomness.seeded(
      _in_function(network.apply),
      lambda: model_lib.placeholders(initial_weights, input_spec),
    )
  return model_lib.Model(
    initial_weights,
    input_spec,
    apply,
    model_lib.mean_loss(loss),
    _metrics(metrics),
    is_random,
  )


def _check_loss(loss: Any) -> None:
  if not callable(loss) or inspect.isclass(loss):
    raise TypeError(f'loss must be a function or a Keras loss, got {loss!r}.')
  if getattr(loss, 'reduction', None) == tf.keras.losses.Reduction.SUM:
    raise ValueError(
      'loss must be a mean over the batch, but its reduction is SUM.'
    )


def _builder(
  keras_model: Any, x_spec: Any
) -> tuple[Callable[[], tf.keras.Model], tf.keras.Model]:
  """Makes one kind of argument of the two that `from_keras` takes.

  Args:
    keras_model: The argument of `from_keras`.
    x_spec: The specs of the inputs.

  Returns:
    A function that builds the model, and the model with its initial weights.

  Raises:
    TypeError: If it is neither a model nor a function that builds one.
    ValueError: If the model has no weights yet, or Keras cannot clone it.
  """
  if isinstance(keras_model, tf.keras.Model):
    if not keras_model.built:
      raise ValueError(
        f'The Keras model {keras_model.name!r} has no weights yet: give it an'
        ' Input layer, call build() on it, or pass a function that builds it.'
      )
    if is_subclassed(keras_model):
      raise ValueError(
        f'The Keras model {keras_model.name!r} is subclassed, which Keras'
        ' cannot clone faithfully: pass a function that builds it.'
      )
    return lambda: tf.keras.models.clone_model(keras_model), keras_model
  if not callable(keras_model):
    raise TypeError(
      'keras_model must be a tf.keras.Model or a function that builds one,'
      f' got {type(keras_model).__name__}.'
    )
  eager_model = keras_model()
  if not isinstance(eager_model, tf.keras.Model):
    raise TypeError(
      'The model function must return a tf.keras.Model, got'
      f' {type(eager_model).__name__}.'
    )
  if not eager_model.built:
    eager_model(tf.nest.map_structure(_zeros, x_spec))
  return keras_model, eager_model


@dataclasses.dataclass(frozen=True, eq=False)
class _Network:
  """A Keras model as a function of its weights.

  Attributes:
    build: A function that builds the model.
    x_spec: The specs of its inputs.
    order: As `_creation_order` gives it.
    adapted: As `_creation_order` gives it.
    feature_place: As `place_of_feature` gives it.
    feature_layer: The name of the layer of the feature, if it was given.
  """

  build: Callable[[], tf.keras.Model]
  x_spec: Any
  order: list[int]
  adapted: set[int]
  feature_place: tuple[int, bool] | None
  feature_layer: str | None

  def apply(
    self, weights: model_lib.ModelWeights, x: Any, training: bool
  ) -> model_lib.Outputs:
    """The outputs, in the present graph, which must be that of a function."""
    network, taps = self._with_weights(weights), []
    if self.feature_place is not None:
      place, is_input = self.feature_place
      taps = _record_calls(leaves(network)[place], is_input)
    predictions = network(x, training=training)
    if self.feature_place is not None and not taps:
      raise ValueError(
        f'The model does not call the layer {self.feature_layer or place!r} of'
        ' the feature (an Input never is called): name another one.'
      )
    # Keras also keeps the losses of the call that made the layers.
    graph = tf.compat.v1.get_default_graph()
    losses = [loss for loss in network.losses if loss.graph is graph]
    return model_lib.Outputs(
      predictions,
      taps[-1] if taps else None,
      tf.add_n(losses) if losses else tf.zeros([]),
    )

  def _with_weights(self, weights: model_lib.ModelWeights) -> tf.keras.Model:
    """The model, built with tensors in the place of its variables."""
    values = (*weights.trainable, *weights.non_trainable)
    remaining, stand_ins = iter(self.order), {}

    def create(next_creator, **kwargs):
      place = next(remaining)
      if place not in self.adapted:
        return values[place]
      variable = next_creator(**kwargs)
      stand_ins[id(variable)] = values[place]
      return variable

    network, _ = _make_network(self.build, create, self.x_spec)
    for layer in _normalizations(network):
      for name, variable in _adapted(layer).items():
        setattr(layer, name, stand_ins[id(variable)])
      layer.finalize_state()
    return network


def _in_function(apply: Callable[..., Any]) -> Callable[..., Any]:
  """The function `(weights, x, training)`, which makes itself a graph."""

  def apply_in_function(weights, x, training):
    graph = tf.compat.v1.get_default_graph()
    if not graph.building_function:
      return tf.function(apply_in_function, autograph=False)(
        weights, x, training
      )
    with _with_constants(graph, (weights, x)):
      return apply(weights, x, training)

  return apply_in_function


def _weights(model: tf.keras.Model) -> model_lib.ModelWeights:
  """The weights as arrays; in tuples, unlike those of TFF's `from_model`."""
  return model_lib.ModelWeights(
    tuple(model.trainable_variables), tuple(model.non_trainable_variables)
  ).convert_variables_to_arrays()


def _check_layers(model: tf.keras.Model) -> None:
  for layer in model._flatten_layers():
    if layer.compute_dtype != layer.variable_dtype:
      raise ValueError(
        f'The layer {layer.name!r} computes in {layer.compute_dtype} with'
        f' weights in {layer.variable_dtype}, but mixed precision is not'
        ' supported. Build the model after'
        " tf.keras.mixed_precision.set_global_policy('float32')."
      )
    if isinstance(layer, tf.keras.layers.BatchNormalization):
      raise ValueError(
        f'The layer {layer.name!r} is a BatchNormalization: its moving'
        ' statistics are neither weights nor data, and a device has too few'
        ' examples for them. Use tf.keras.layers.GroupNormalization or'
        ' LayerNormalization instead.'
      )
    for name in ('kernel_constraint', 'bias_constraint'):
      if getattr(layer, name, None) is not None:
        raise ValueError(
          f'The layer {layer.name!r} has a {name}, which the methods do not'
          ' keep: remove it.'
        )
  if not model.trainable_variables:
    raise ValueError(f'The model {model.name!r} has no trainable weight.')


def is_subclassed(model: tf.keras.Model) -> bool:
  """Whether Keras does not know of which layers the model consists."""
  is_sequential = isinstance(model, tf.keras.Sequential)
  return not is_sequential and not model._is_graph_network


@contextlib.contextmanager
def _explained(model: tf.keras.Model):
  """Says what is wrong where Keras or TensorFlow fail in building a model."""
  try:
    yield
  except (AttributeError, RuntimeError, TypeError) as e:
    raise ValueError(
      f'The model {model.name!r} cannot be made a function of its weights. A'
      ' function that builds it must make all its layers anew and must not call'
      ' the model, and no layer may change variables when it is called. Keras'
      f' said: {checks.first_line(e)}.'
    ) from e


def place_of_feature(
  model: tf.keras.Model, name: str | None
) -> tuple[int, bool] | None:
  """Finds the layer whose input or output is the feature.

  Args:
    model: The model.
    name: The name of the layer; `None` for the last layer that has weights.

  Returns:
    Its place among the `leaves` of the model, and whether the feature is its
    input and not its output. A layer keeps its place, but perhaps not its name,
    when the model is built again. `None` if a subclassed model has no name
    given: there, nothing says which layer is the last.

  Raises:
    ValueError: If there is no layer of this name.
  """
  layers = leaves(model)
  if name is None:
    if is_subclassed(model):
      return None
    weighted = [i for i, leaf in enumerate(layers) if leaf.weights]
    return weighted[-1], True
  names = [leaf.name for leaf in layers]
  if name not in names:
    raise ValueError(
      f'There is no layer {name!r} for the feature; the layers are'
      f' {", ".join(names)}.'
    )
  return names.index(name), False


def leaves(model: tf.keras.Model) -> list[tf.keras.layers.Layer]:
  """The layers that hold no layers, in the order of the model."""
  found = []
  for layer in model.layers:
    found += leaves(layer) if getattr(layer, 'layers', None) else [layer]
  return found


def _record_calls(
  layer: tf.keras.layers.Layer, is_input: bool
) -> list[tf.Tensor]:
  """Makes the layer record its input or output whenever it is called."""
  call, taps = layer.call, []

  def recording_call(inputs, *args, **kwargs):
    outputs = call(inputs, *args, **kwargs)
    taps.append(inputs if is_input else outputs)
    return outputs

  # Keras reads the signature to find out whether the layer takes `training`.
  recording_call.__signature__ = inspect.signature(call)
  layer.call = tf.autograph.experimental.do_not_convert(recording_call)
  return taps


# Autograph cannot convert the thread, and says so at each network.
@tf.autograph.experimental.do_not_convert
def _make_network(
  build: Callable[[], tf.keras.Model],
  creator: Callable[..., Any],
  x_spec: Any,
  call: bool = False,
) -> tuple[tf.keras.Model, tf.Graph]:
  """Builds a network with the variables of `creator`.

  A graph inside of TFF is one of TensorFlow 1: Keras would build another kind
  of layers there, and leave its own unusable. A new thread is outside of any
  graph.

  Args:
    build: A function that builds the model.
    creator: What `tf.variable_creator_scope` takes.
    x_spec: The specs of the inputs.
    call: Whether to call the model too, in training. A model that gets its
      weights or layers only when it is called is always called.

  Returns:
    The network, and the graph in which it was called. This graph is not that of
    the caller, so the call leaves nothing behind there.
  """
  graph = tf.__internal__.FuncGraph('network')

  def create(next_creator, **kwargs):
    # A model counts its batches in variables, which nothing here uses.
    is_counter = (
      kwargs.get('aggregation') == tf.VariableAggregation.ONLY_FIRST_REPLICA
    )
    if is_counter:
      return next_creator(**kwargs)
    return creator(next_creator, **kwargs)

  def make() -> tf.keras.Model:
    with tf.variable_creator_scope(create):
      network = build()
    if call or not network.built or is_subclassed(network):
      with graph.as_default(), tf.variable_creator_scope(create):
        x = tf.nest.map_structure(model_lib.placeholder, x_spec)
        network(x, training=True)
    return network

  with concurrent.futures.ThreadPoolExecutor(1) as executor:
    context = contextvars.copy_context()
    return executor.submit(context.run, make).result(), graph


@contextlib.contextmanager
def _with_constants(graph: tf.Graph, arguments: Any) -> Iterator[None]:
  """Makes tensors from outside of any graph constants of a function's graph.

  Keras makes some while it builds a network, for example of the number in
  `x * 0.5`. TensorFlow would make them arguments of the function, and the
  graphs of TFF cannot give them. The arguments of the model, which may be such
  tensors too, are left alone: gradients are taken in them.
  """
  capture = graph.capture
  own = {id(tensor) for tensor in tf.nest.flatten(arguments)}

  def capture_or_copy(tensor, name=None, shape=None):
    is_constant = (
      isinstance(tensor, tf.__internal__.EagerTensor)
      and tensor.dtype not in (tf.resource, tf.variant)
      and id(tensor) not in own
    )
    if not is_constant:
      return capture(tensor, name, shape)
    with tf.control_dependencies(None):
      return tf.constant(tensor.numpy())

  graph.capture = capture_or_copy
  try:
    yield
  finally:
    del graph.capture


def _creation_order(
  build: Callable[[], tf.keras.Model], model: tf.keras.Model, x_spec: Any
) -> tuple[list[int], set[int]]:
  """For each variable in order of creation its place among the weights.

  Besides, the places of the weights of `_normalizations`.
  """
  created = []

  def record(next_creator, **kwargs):
    created.append(next_creator(**kwargs))
    return created[-1]

  with _explained(model), randomness.seeded_layers(tf.zeros([2], tf.int32)):
    traced, graph = _make_network(build, record, x_spec, call=True)
  if _shapes(traced) != _shapes(model):
    raise ValueError(
      f'The model {model.name!r} shares or freezes weights in a way that'
      ' cloning does not keep: pass a function that builds the model instead.'
    )
  weights = traced.trainable_variables + traced.non_trainable_variables
  if not {id(v) for v in weights} <= {id(v) for v in created}:
    raise ValueError(
      f'The function that builds the model {model.name!r} must make all its'
      ' layers anew, but some weights were there before.'
    )
  places = {id(variable): i for i, variable in enumerate(weights)}
  is_changed = any(
    op.type.startswith('Assign') for op in graph.get_operations()
  )
  if is_changed or not all(id(v) in places for v in created):
    raise ValueError(
      f'The model {model.name!r} holds state that is not a weight or that'
      ' changes when it is called (moving statistics, a stateful or normalizing'
      ' layer, a seed generator): it cannot be a function of its weights. Use'
      ' layers without state, for example GroupNormalization instead of'
      ' BatchNormalization, or stateful=False.'
    )
  adapted = {
    places[id(variable)]
    for layer in _normalizations(traced)
    for variable in _adapted(layer).values()
  }
  return [places[id(v)] for v in created], adapted


def _normalizations(
  model: tf.keras.Model,
) -> list[tf.keras.layers.Normalization]:
  """The layers that compute with their weights while Keras builds them.

  Keras builds outside of the graph in which the weights are. These layers get
  variables in their place until they are built.
  """
  return [
    layer
    for layer in model._flatten_layers()
    if isinstance(layer, tf.keras.layers.Normalization)
    and layer.input_mean is None
  ]


def _adapted(layer: tf.keras.layers.Normalization) -> dict[str, tf.Variable]:
  names = ('adapt_mean', 'adapt_variance', 'count')
  return {name: getattr(layer, name) for name in names}


def _shapes(model: tf.keras.Model) -> tuple[list[tf.TensorShape], ...]:
  groups = (model.trainable_variables, model.non_trainable_variables)
  return tuple([v.shape for v in variables] for variables in groups)


def _metrics(constructor: Any) -> model_lib.Metrics:
  if constructor is None:
    return model_lib.Metrics(
      collections.OrderedDict,
      lambda state, labels, batch_output: collections.OrderedDict(),
      lambda state: collections.OrderedDict(),
    )
  if any(
    isinstance(metric, tf.keras.metrics.Metric)
    for metric in tf.nest.flatten(constructor)
  ):
    raise TypeError(
      'metrics must be a function that makes the metrics, or their class, and'
      f' no metric, got {constructor!r}.'
    )
  if callable(constructor):
    given = constructor

    def constructor():
      built = given()
      if isinstance(built, tf.keras.metrics.Metric):
        built = [built]
      if isinstance(built, (list, tuple)):
        if not all(isinstance(m, tf.keras.metrics.Metric) for m in built):
          raise TypeError(f'metrics must make Keras metrics, got {built!r}.')
        names = [m.name for m in built]
        if len(set(names)) < len(names):
          raise ValueError(f'The metrics need different names, got {names}.')
        built = collections.OrderedDict(zip(names, built, strict=True))
      return built

  return model_lib.Metrics(
    *tff.learning.metrics.create_functional_metric_fns(constructor)
  )


def _zeros(spec: tf.TensorSpec) -> tf.Tensor:
  return tf.zeros([dim or 1 for dim in spec.shape], spec.dtype)
