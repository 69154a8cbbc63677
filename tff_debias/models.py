"""Keras and functional models as pure functions of their weights.

A personalization differentiates through steps of gradient descent, so it needs
the model as a function of its weights and not as an object that owns them.
"""

import collections
from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import inspect
import threading
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

ModelWeights = tff.learning.models.ModelWeights


class Outputs(NamedTuple):
  """What a model gives for a batch of `b` examples.

  Attributes:
    predictions: What the loss and the metrics take, `[b, outputs]` for a
      classifier that gives logits.
    feature: The input of the prototypes, a float tensor `[b, ...]`; `None` for
      a functional model that was given no feature.
  """

  predictions: Any
  feature: tf.Tensor | None


class Metrics(NamedTuple):
  """The metrics of a model as the pure functions that TFF makes of them."""

  initialize: Callable[[], Any]
  update: Callable[..., Any]
  finalize: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as the methods need it; see `from_keras` and `from_functional`.

  Attributes:
    initial_weights: A `tff.learning.models.ModelWeights` of NumPy arrays, in
      the order of `tf.keras.Model.trainable_variables`.
    input_spec: The `tf.TensorSpec`s of a batch, either a pair `(x, y)` or a
      mapping with the keys `x` and `y`; the first dimension is the batch.
    apply: A pure function `(weights, x, training) -> Outputs`.
    loss: A function `(labels, predictions) -> scalar`, the mean over a batch.
    metrics: The functional metrics.
  """

  initial_weights: ModelWeights
  input_spec: Any
  apply: Callable[[ModelWeights, Any, bool], Outputs]
  loss: Callable[[Any, Any], tf.Tensor]
  metrics: Metrics

  def __post_init__(self):
    for weight in tf.nest.flatten(self.initial_weights.trainable):
      if weight.dtype != np.float32:
        raise ValueError(
          f'Weights must be float32 arrays, got {weight.dtype} of shape'
          f' {list(weight.shape)}.'
        )
    with tf.Graph().as_default():
      names = self.metrics.finalize(self.metrics.initialize())
    reserved = {'loss', 'num_examples', 'counts'}.intersection(names)
    if reserved:
      raise ValueError(
        f'A metric must not be named {", ".join(sorted(reserved))}: that is'
        ' reported for every model.'
      )

  @functools.cached_property
  def output_spec(self) -> Outputs:
    """The `tf.TensorSpec`s of the predictions and of the feature."""
    with tf.Graph().as_default():
      x = tf.nest.map_structure(_placeholder, split_batch(self.input_spec)[0])
      weights = tf.nest.map_structure(tf.constant, self.initial_weights)
      return tf.nest.map_structure(
        lambda t: None if t is None else tf.TensorSpec.from_tensor(t),
        self.apply(weights, x, False),
      )


def split_batch(batch: Any) -> tuple[Any, Any]:
  """The inputs and the labels of a batch, a pair or a mapping with x and y."""
  if isinstance(batch, Mapping):
    return batch['x'], batch['y']
  x, y = batch
  return x, y


def from_keras(
  keras_model: tf.keras.Model | Callable[[], tf.keras.Model],
  loss: Callable[[Any, Any], tf.Tensor],
  input_spec: Any,
  metrics: Any = None,
  feature_layer: str | None = None,
) -> Model:
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
  _check_input_spec(input_spec)
  if not callable(loss) or inspect.isclass(loss):
    raise TypeError(f'loss must be a function or a Keras loss, got {loss!r}.')
  if getattr(loss, 'reduction', None) == tf.keras.losses.Reduction.SUM:
    raise ValueError(
      'loss must be a mean over the batch, but its reduction is SUM.'
    )
  if isinstance(keras_model, tf.keras.Model):
    if not keras_model.built:
      raise ValueError(
        f'The Keras model {keras_model.name!r} has no weights yet: give it an'
        ' Input layer, call build() on it, or pass a function that builds it.'
      )
    if _is_subclassed(keras_model):
      raise ValueError(
        f'The Keras model {keras_model.name!r} is subclassed, which Keras'
        ' cannot clone faithfully: pass a function that builds it.'
      )

    def build() -> tf.keras.Model:
      return tf.keras.models.clone_model(keras_model)

    eager_model = keras_model
  elif callable(keras_model):
    build, eager_model = keras_model, keras_model()
    if not isinstance(eager_model, tf.keras.Model):
      raise TypeError(
        'The model function must return a tf.keras.Model, got'
        f' {type(eager_model).__name__}.'
      )
  else:
    raise TypeError(
      'keras_model must be a tf.keras.Model or a function that builds one,'
      f' got {type(keras_model).__name__}.'
    )
  x_spec = split_batch(input_spec)[0]
  if not eager_model.built:
    eager_model(tf.nest.map_structure(_zeros, x_spec))
  _check_layers(eager_model)
  tapped = _feature_layer(eager_model, feature_layer)
  creation_order = _creation_order(build, eager_model, x_spec)
  initial_weights = ModelWeights(
    trainable=tuple(v.numpy() for v in eager_model.trainable_variables),
    non_trainable=tuple(v.numpy() for v in eager_model.non_trainable_variables),
  )

  def apply(weights: ModelWeights, x: Any, training: bool) -> Outputs:
    values = list(weights.trainable) + list(weights.non_trainable)
    ordered = iter([values[i] for i in creation_order])
    with tf.variable_creator_scope(lambda _, **kwargs: next(ordered)):
      model = build()
      taps = []
      if tapped is not None:
        place, is_input = tapped
        taps = _record_calls(_leaves(model)[place], is_input)
      predictions = model(x, training=training)
    _restore_classes(model)
    if tapped is not None and not taps:
      raise ValueError(
        f'The model does not call the layer {feature_layer or place!r} of the'
        ' feature (an Input never is called): name another one.'
      )
    return Outputs(predictions, taps[-1] if taps else None)

  model = Model(
    initial_weights, input_spec, apply, _mean_loss(loss), _metrics(metrics)
  )
  with _explained(eager_model):
    assert model.output_spec
  return model


def from_functional(
  functional_model: tff.learning.models.FunctionalModel,
  feature_fn: Callable[[Any, Any, bool], tf.Tensor] | None = None,
) -> Model:
  """Makes a `Model` of a `tff.learning.models.FunctionalModel`.

  Args:
    functional_model: The model; its loss, metrics and input spec are used.
    feature_fn: A function `((trainable, non_trainable), x, training) ->
      feature`, needed for prototypes. A network that is an embedding can give
      its own prediction function.

  Returns:
    A `Model`.

  Raises:
    TypeError: If `functional_model` is not a functional model.
    ValueError: If the input specification is not that of a batch.
  """
  if not isinstance(functional_model, tff.learning.models.FunctionalModel):
    raise TypeError(
      'functional_model must be a tff.learning.models.FunctionalModel, got'
      f' {type(functional_model).__name__}.'
    )
  _check_input_spec(functional_model.input_spec)
  # The method and the function that it calls are tf.functions: calling what
  # they wrap keeps the gradient in one graph (DESIGN.md, Speed: 1.8 times).
  predict = functional_model._predict_on_batch_fn
  predict = getattr(predict, 'python_function', predict)

  def apply(weights: ModelWeights, x: Any, training: bool) -> Outputs:
    pair = (tuple(weights.trainable), tuple(weights.non_trainable))
    feature = feature_fn(pair, x, training) if feature_fn else None
    return Outputs(predict(pair, x, training), feature)

  trainable, non_trainable = functional_model.initial_weights
  return Model(
    ModelWeights(
      tuple(np.asarray(w) for w in trainable),
      tuple(np.asarray(w) for w in non_trainable),
    ),
    functional_model.input_spec,
    apply,
    _mean_loss(
      lambda labels, predictions: functional_model.loss(predictions, labels)
    ),
    Metrics(
      functional_model.initialize_metrics_state,
      functional_model.update_metrics_state,
      functional_model.finalize_metrics,
    ),
  )


def _check_input_spec(input_spec: Any) -> None:
  try:
    x, y = split_batch(input_spec)
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(
      "input_spec must be a pair (x, y) or a mapping with 'x' and 'y', got"
      f' {input_spec!r}.'
    ) from e
  for spec in tf.nest.flatten((x, y)):
    if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
      raise ValueError(
        'input_spec must hold a tf.TensorSpec of a batch (rank 1 or more, the'
        f' first dimension None) for every tensor, got {spec!r}.'
      )


def _check_layers(model: tf.keras.Model) -> None:
  for layer in model.submodules:
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
  if model.losses:
    raise ValueError(
      f'The model {model.name!r} adds losses of its own (a regularizer or'
      ' add_loss), which the methods do not see. Remove them and set'
      ' weight_decay instead.'
    )
  if not model.trainable_variables:
    raise ValueError(f'The model {model.name!r} has no trainable weight.')


def _is_subclassed(model: tf.keras.Model) -> bool:
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
      ' function that builds it must make all its layers anew, and no layer may'
      f' change variables when it is called. Keras said: {e}'
    ) from e


def _feature_layer(
  model: tf.keras.Model, name: str | None
) -> tuple[int, bool] | None:
  """The place of the layer to tap (names change), and if at its input."""
  leaves = _leaves(model)
  if name is None:
    if _is_subclassed(model):
      return None
    weighted = [i for i, leaf in enumerate(leaves) if leaf.weights]
    return weighted[-1], True
  names = [leaf.name for leaf in leaves]
  if name not in names:
    raise ValueError(
      f'There is no layer {name!r} for the feature; the layers are'
      f' {", ".join(names)}.'
    )
  return names.index(name), False


def _leaves(model: tf.keras.Model) -> list[tf.keras.layers.Layer]:
  """The layers that hold no layers, in the order of the model."""
  leaves = []
  for layer in model.layers:
    leaves += _leaves(layer) if getattr(layer, 'layers', None) else [layer]
  return leaves


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


def _creation_order(
  build: Callable[[], tf.keras.Model], model: tf.keras.Model, x_spec: Any
) -> list[int]:
  """For each variable in order of creation its place among the weights."""
  created = []

  def record(next_creator, **kwargs):
    created.append(next_creator(**kwargs))
    return created[-1]

  with tf.Graph().as_default() as graph:
    with _explained(model), tf.variable_creator_scope(record):
      traced = build()
      traced(tf.nest.map_structure(_placeholder, x_spec), training=True)
    weights = traced.trainable_variables + traced.non_trainable_variables
    places = {id(variable): i for i, variable in enumerate(weights)}
    assignments = [
      op for op in graph.get_operations() if op.type.startswith('Assign')
    ]
  _restore_classes(traced)
  if _shapes(traced) != _shapes(model):
    raise ValueError(
      f'The model {model.name!r} shares or freezes weights in a way that'
      ' cloning does not keep: pass a function that builds the model instead.'
    )
  if len(assignments) > len(created) or not all(
    id(v) in places for v in created
  ):
    raise ValueError(
      f'The model {model.name!r} holds state that is not a weight and that'
      ' changes when it is called (moving statistics, a stateful or'
      ' normalizing layer, a seed generator): it cannot be a function of its'
      ' weights. Use layers without state, for example GroupNormalization'
      ' instead of BatchNormalization, or stateful=False.'
    )
  return [places[id(v)] for v in created]


def _shapes(model: tf.keras.Model) -> tuple[list[tf.TensorShape], ...]:
  groups = (model.trainable_variables, model.non_trainable_variables)
  return tuple([v.shape for v in variables] for variables in groups)


def _restore_classes(model: tf.keras.Model) -> None:
  """Undoes what Keras does to the classes of a model that is made in a graph.

  It exchanges their base classes for those of TensorFlow 1, for all instances,
  so that the caller's own models no longer work. Making an instance outside of
  any graph, as a new thread is, changes them back.
  """
  classes = {type(module) for module in (model, *model.submodules)}

  def make_instances() -> None:
    for cls in classes:
      cls.__new__(cls)

  thread = threading.Thread(target=make_instances)
  thread.start()
  thread.join()


def _mean_loss(loss: Callable[[Any, Any], tf.Tensor]):
  return lambda labels, predictions: tf.reduce_mean(loss(labels, predictions))


def _metrics(constructor: Any) -> Metrics:
  if constructor is None:
    return Metrics(
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

  return Metrics(
    *tff.learning.metrics.create_functional_metric_fns(constructor)
  )


def _placeholder(spec: tf.TensorSpec) -> tf.Tensor:
  return tf.compat.v1.placeholder(spec.dtype, spec.shape)


def _zeros(spec: tf.TensorSpec) -> tf.Tensor:
  return tf.zeros([dim or 1 for dim in spec.shape], spec.dtype)
