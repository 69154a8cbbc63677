"""Makes a Keras model a function of its weights, with its loss and metrics."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import inspect
from typing import Any
from typing import TypeAlias

import tensorflow as tf

from tff_debias import checks
from tff_debias.models import metrics as metrics_lib
from tff_debias.models import model as model_lib
from tff_debias.models import stand_ins
from tff_debias.models import tracing

Layer: TypeAlias = tf.keras.layers.Layer


def from_keras(
  keras_model: tf.keras.Model | Callable[[], tf.keras.Model],
  loss: Callable[[Any, Any], tf.Tensor],
  input_spec: Any,
  metrics: Any = None,
  feature_layer: str | None = None,
) -> model_lib.Model:
  """Makes a `Model` of a Keras model.

  The given model itself is called wherever a graph is made, with tensors in the
  place of its weights. Its own weights never change. Do not use it in another
  thread while a process or an evaluation is built.

  Args:
    keras_model: A `tf.keras.Model` of any kind, whose present weights are the
      initial ones, or a function without arguments that makes one.
    loss: A `tf.keras.losses.Loss` or a function `(y_true, y_pred) -> tensor`.
      A tensor with a value per example is averaged. As in Keras, the padding of
      masked sequences counts neither in the loss nor in a metric; TFF's own
      models count it.
    input_spec: The `tf.TensorSpec`s of a batch: `(x, y)` or `{'x':, 'y':}`.
    metrics: A function that returns a list or a mapping of Keras metrics, or a
      mapping of metric constructors. By default none: only the loss.
    feature_layer: The name of the layer whose output is the feature of the
      prototypes. By default the feature is the input of the last layer that has
      weights. A subclassed model does not say which layer is its last: there
      the feature is `None` by default.

  Returns:
    A `Model`.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If the model is no function of its weights, with what to use
      instead; if there is no layer `feature_layer`; if the input specification
      is not that of a batch.
  """
  model_lib.check_input_spec(input_spec)
  x_spec, y_spec = model_lib.split_batch(input_spec)
  _check_loss(loss)
  model = keras_model
  if callable(model) and not isinstance(model, tf.keras.Model):
    model = model()
  if not isinstance(model, tf.keras.Model):
    raise TypeError(
      'keras_model must be a tf.keras.Model or a function that builds one, got'
      f' {model!r}.'
    )
  # A model that makes its weights when it is called has them from here on.
  with stand_ins.standing_for(model):
    tracing.trace(lambda x: tracing.call(model, x, training=False), x_spec)
  variables = _variables(model)
  feature = find_feature(model, feature_layer)
  apply = functools.partial(_apply, model, variables, *feature)
  weights = model_lib.ModelWeights(
    *(tuple(v.numpy() for v in group) for group in variables)
  )
  predictions_spec = _check_calls(apply, weights, x_spec)
  return model_lib.Model(
    weights,
    input_spec,
    apply,
    functools.partial(_mean_loss, loss),
    metrics_lib.from_metrics(metrics, y_spec, predictions_spec),
  )


def _check_loss(loss: Any) -> None:
  if not callable(loss) or inspect.isclass(loss):
    raise TypeError(f'loss must be a function or a Keras loss, got {loss!r}.')
  if getattr(loss, 'reduction', None) == tf.keras.losses.Reduction.SUM:
    raise ValueError(
      'loss must be a mean over the batch, but its reduction is SUM.'
    )


def _variables(model: tf.keras.Model) -> tuple[list[tf.Variable], ...]:
  """The trainable and the other weights, without the tables of vocabularies."""
  trainable, others = (
    [w for w in group if isinstance(w, tf.Variable)]
    for group in (model.trainable_weights, model.non_trainable_weights)
  )
  if not trainable:
    raise ValueError(f'The model {model.name!r} has no trainable weight.')
  for v in trainable:
    if v.constraint is not None:
      raise ValueError(
        f'The weight {v.name!r} has a constraint, {v.constraint!r}, which the'
        ' methods do not keep: a correction is right for plain steps of'
        ' gradient descent only. Remove it.'
      )
  return trainable, others


def _apply(
  model: tf.keras.Model,
  variables: tuple[list[tf.Variable], ...],
  feature_layer: Layer | None,
  is_input: bool,
  weights: model_lib.ModelWeights,
  x: Any,
  training: bool,
) -> model_lib.Outputs:
  """The outputs of the model, with the weights in the place of its variables.

  The feature is the output of the `feature_layer`, or its input.
  """
  values = [
    tf.convert_to_tensor(w)
    for w in (*weights.trainable, *weights.non_trainable)
  ]
  graph = tf.compat.v1.get_default_graph()
  with (
    stand_ins.standing_for(model, sum(variables, []), values) as present,
    _recording(feature_layer, is_input) as features,
  ):
    predictions = tracing.call(model, x, training=training)
    # Keras also keeps the losses of the call that made the layers.
    losses = [t for t in model.losses if getattr(t, 'graph', graph) is graph]
  for v, value, now in zip(sum(variables, []), values, present, strict=True):
    if now is not value:
      raise ValueError(
        f'The model changes the weight {v.name!r} when it is called in training'
        ' (BatchNormalization, a stateful layer): set trainable=False for that'
        ' layer, or use GroupNormalization.'
      )
  return model_lib.Outputs(
    predictions,
    features[-1] if features else None,
    tf.add_n(losses) if losses else tf.zeros([]),
  )


def _check_calls(
  apply: Callable[..., Any], weights: model_lib.ModelWeights, x_spec: Any
) -> Any:
  """The specs of the predictions of a model that changes no variable."""
  for training in (True, False):
    try:
      traced = tracing.trace(
        lambda w, x, training=training: apply(w, x, training).predictions,
        tracing.specs_of(weights),
        x_spec,
      )
    except tf.errors.OperatorNotAllowedInGraphError as e:
      raise ValueError(
        'The model asks in Python for the value of a tensor, as'
        f' SpectralNormalization does: {checks.first_line(e)}. Use a layer that'
        ' does not.'
      ) from e
    graph = traced.graph.as_graph_def()
    functions = [graph.node, *[f.node_def for f in graph.library.function]]
    if any(n.op.startswith('Assign') for nodes in functions for n in nodes):
      raise ValueError(
        'The model changes a variable that is no weight when it is called (a'
        ' stateful layer): use stateful=False.'
      )
  return tracing.specs_of(traced.structured_outputs)


def _mean_loss(loss: Callable[..., Any], labels: Any, predictions: Any) -> Any:
  """The mean over the batch, without the padding that a mask of Keras marks."""
  value = tf.convert_to_tensor(tracing.call(loss, labels, predictions))
  mask = getattr(predictions, '_keras_mask', None)
  if mask is None or value.shape.rank < mask.shape.rank:
    return tf.reduce_mean(value)
  for _ in range(value.shape.rank - mask.shape.rank):
    mask = mask[..., tf.newaxis]
  counts = tf.cast(mask, value.dtype) * tf.ones_like(value)
  return tf.math.divide_no_nan(
    tf.reduce_sum(counts * value), tf.reduce_sum(counts)
  )


# The feature.


def find_feature(
  model: tf.keras.Model, name: str | None
) -> tuple[Layer | None, bool]:
  """Where the feature of the prototypes is.

  Args:
    model: The model, which has its weights.
    name: The name of a layer, or `None` for the input of the last layer that
      has weights.

  Returns:
    The layer, and whether the feature is its input and not its output. The
    layer is `None` if a subclassed model has no name given: there, nothing says
    which layer is the last.

  Raises:
    ValueError: If there is no layer of this name.
  """
  layers = _leaves(model)
  if name is not None:
    for layer in layers:
      if layer.name == name:
        return layer, False
    raise ValueError(
      f'There is no layer {name!r} for the feature; the layers are'
      f' {", ".join(layer.name for layer in layers)}.'
    )
  if is_subclassed(model):
    return None, True
  # A vocabulary is a weight to Keras, but no variable.
  return [
    layer
    for layer in layers
    if any(isinstance(weight, tf.Variable) for weight in layer.weights)
  ][-1], True


def is_subclassed(model: tf.keras.Model) -> bool:
  """Whether Keras does not know of which layers the model consists."""
  is_sequential = isinstance(model, tf.keras.Sequential)
  return not is_sequential and not model._is_graph_network


def _leaves(layer: Layer) -> list[Layer]:
  """The layers that are no models, in the order of the model."""
  layers = getattr(layer, 'layers', None)
  return sum(map(_leaves, layers), []) if layers else [layer]


@contextlib.contextmanager
def _recording(layer: Layer | None, is_input: bool) -> Iterator[list[Any]]:
  """Lets a layer record its input or output whenever it is called."""
  records: list[Any] = []
  if layer is None:
    yield records
    return
  call, own = layer.call, vars(layer).get('call')

  @tf.autograph.experimental.do_not_convert
  @functools.wraps(call)  # Keras reads the signature.
  def recording_call(inputs, *args, **kwargs):
    outputs = tracing.call(call, inputs, *args, **kwargs)
    records.append(inputs if is_input else outputs)
    return outputs

  vars(layer)['call'] = recording_call
  try:
    yield records
  finally:
    del vars(layer)['call']
    if own is not None:
      vars(layer)['call'] = own
