"""Writes the personalized model of one device, for use without this package."""

from collections.abc import Iterator
import contextlib
import os
import tempfile
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations
from tff_debias.personalizations import base

#: The most that a probability may differ between the files and the method.
TOLERANCE = 1e-3

# Below any other logit, finite, and with a probability of exactly 0.
_NEVER = -1e30
_BATCH_SIZE = 500
_NAMES = ('model.keras', 'saved_model', 'model.tflite')


class ExportError(ValueError):
  """The model cannot be personalized or exported: why, and what would do."""


class Export(NamedTuple):
  """What `export_personalized_model` wrote.

  Attributes:
    keras: The path of `model.keras`.
    saved_model: The path of the folder `saved_model`.
    tflite: The path of `model.tflite`.
    keras_model: The personalized model.
    difference: For each of the files the largest difference of a probability
      from the personalization itself, on the device's examples; for MAML also
      `on_device`, after the steps that the TensorFlow Lite model made itself.
  """

  keras: str
  saved_model: str
  tflite: str
  keras_model: tf.keras.Model
  difference: dict[str, float]


class _Personalized(NamedTuple):
  """A personalized model in parts.

  Attributes:
    keras_model: Inputs to probabilities.
    network: The part of it that has the model's own weights.
    meta_weights: The weights before personalization.
    probabilities: What the personalization itself gives for the examples.
  """

  keras_model: tf.keras.Model
  network: tf.keras.Model
  meta_weights: models.ModelWeights
  probabilities: np.ndarray


def export_personalized_model(
  keras_model: tf.keras.Model,
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[Any, Any],
  directory: str | os.PathLike[str],
  *,
  max_grad_norm: float = 10.0,
  feature_layer: str | None = None,
) -> Export:
  """Personalizes a meta-model for a device and writes the model of the device.

  The directory gets `model.keras`, which Keras loads without this package;
  `saved_model`, with `serving_default`; and `model.tflite`. All give the
  probabilities float32 `[b, classes]` of input `[b, ...]` as the model was
  trained on, so let the Keras model begin with what prepares raw input, such as
  `tf.keras.layers.Rescaling`. The TensorFlow Lite model has these signatures;
  all but the first only for `Maml`, which needs TensorFlow Lite's
  `select-tf-ops`:

  * `infer(x) -> probabilities`, by the present weights, at first those of the
    personalized model.
  * `personalize(x, y, step) -> loss, num_steps`: a step of MAML on all of the
    device's examples, `y` int32 `[b]`. Step 0 begins at the meta-model, and
    the steps 0, 1, …, num_steps - 1 make a personalized model. The loss is that
    before the step.
  * `save(path) -> path` and `restore(path) -> path`: the weights, as a file.

  All files are read again and must agree with the personalization on the
  device's examples before they get their names: there is never half a model.

  Args:
    keras_model: The Keras model that `model` was made of, a functional or
      sequential one, with the weights of the meta-model (such as
      `process.get_model_weights(state).assign_weights_to(keras_model)` gives
      it). It is not changed.
    model: The model.
    personalization: `Maml`, `Proto` or `NoPersonalization`.
    data: The device's examples `(x, y)`, arrays: inputs `[examples, ...]` and
      the classes, integers `[examples]`.
    directory: Where to write. An earlier export there is replaced.
    max_grad_norm: The bound on the norm of a gradient in a step of MAML.
    feature_layer: As it was given to `tff_debias.from_keras`.

  Returns:
    An `Export`.

  Raises:
    ExportError: If the model cannot be exported, the examples do not suit it,
      the directory holds something else, or the files do not agree.
    OSError: If they cannot be written. Nothing is left behind then.
  """
  directory = os.path.abspath(directory)
  _check_directory(directory)
  x, y = _check_examples(model, personalization, data)
  personalized = _personalize(
    keras_model,
    model,
    personalization,
    (x, y),
    max_grad_norm,
    feature_layer,
  )
  functions = _functions(personalized, model, personalization, max_grad_norm)
  module = tf.Module()
  module.tracked = personalized.keras_model.variables
  os.makedirs(os.path.dirname(directory), exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{os.path.basename(directory)}.', dir=os.path.dirname(directory)
  ) as scratch:
    new = os.path.join(scratch, 'new')
    os.mkdir(new)
    keras, saved_model, tflite = (os.path.join(new, name) for name in _NAMES)
    with _quiet():
      personalized.keras_model.save(keras)
      tf.saved_model.save(
        module, saved_model, {'serving_default': functions['infer']}
      )
      with open(tflite, 'wb') as file:
        folder = os.path.join(scratch, 'signatures')
        tf.saved_model.save(module, folder, functions)
        file.write(_convert(folder, needs_tensorflow=len(functions) > 1))
      difference = _differences(new, personalized, personalization, x, y)
    for name, value in difference.items():
      # A NaN is not below anything either.
      if not value < TOLERANCE:
        raise ExportError(
          f'The exported model {name} gives other probabilities than the'
          f' personalization, up to {value:.2g} (at most {TOLERANCE:g} is'
          ' right). The model may be random when it is trained (Dropout), or'
          ' not the Keras model that the Model was made of.'
        )
    if os.path.lexists(directory):
      os.rename(directory, os.path.join(scratch, 'old'))
    os.rename(new, directory)
  return Export(
    *(os.path.join(directory, name) for name in _NAMES),
    personalized.keras_model,
    difference,
  )


def personalized_keras_model(
  keras_model: tf.keras.Model,
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[Any, Any],
  *,
  max_grad_norm: float = 10.0,
  feature_layer: str | None = None,
) -> tf.keras.Model:
  """The personalized model of a device, made of Keras' own layers.

  Args:
    keras_model: As in `export_personalized_model`.
    model: As there.
    personalization: As there.
    data: As there.
    max_grad_norm: As there.
    feature_layer: As there.

  Returns:
    A new Keras model that gives the probabilities float32 `[b, classes]` of
    inputs. A class without an example has no prototype, and the probability 0.

  Raises:
    ExportError: If the model cannot be exported, or the examples do not suit
      it.
  """
  return _personalize(
    keras_model,
    model,
    personalization,
    _check_examples(model, personalization, data),
    max_grad_norm,
    feature_layer,
  ).keras_model


def _check_directory(directory: str) -> None:
  if not os.path.lexists(directory):
    return
  if not os.path.isdir(directory):
    raise ExportError(f'{directory} is no directory: name another one.')
  others = set(os.listdir(directory)).difference(_NAMES)
  if others:
    raise ExportError(
      f'{directory} holds something else than an exported model'
      f' ({", ".join(sorted(others)[:5])}): name another directory.'
    )


def _check_examples(
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[Any, Any],
) -> tuple[np.ndarray, np.ndarray]:
  """The examples in the dtypes of the model."""
  x_spec, y_spec = models.split_batch(model.input_spec)
  predictions = model.output_spec.predictions
  for what, spec, rank in (
    ('input', x_spec, None),
    ('label', y_spec, 1),
    ('output', predictions, 2),
  ):
    if not isinstance(spec, tf.TensorSpec) or rank not in (
      None,
      spec.shape.rank,
    ):
      raise ExportError(
        'Only a classifier can be exported, with one tensor as its input,'
        ' labels [b] and outputs [b, classes]; the'
        f' {what} of this model is {spec}.'
      )
  if None in x_spec.shape[1:]:
    raise ExportError(
      f'The model must have inputs of one size, got {x_spec.shape}.'
    )
  try:
    x, y = (np.asarray(array) for array in data)
  except (TypeError, ValueError) as e:
    raise ExportError(f'The examples must be two arrays (x, y): {e}.') from e
  if x.dtype.kind not in 'fiub':
    raise ExportError(f'The inputs x must be numbers, got {x.dtype}.')
  if x.shape[1:] != tuple(x_spec.shape[1:]) or not x.ndim:
    raise ExportError(
      f'The inputs x must be [examples, {str(list(x_spec.shape[1:]))[1:-1]}],'
      f' got {list(x.shape)}.'
    )
  if y.dtype.kind not in 'iu' or y.shape != x.shape[:1]:
    raise ExportError(
      f'The labels y must be {len(x)} integers, one for each input, got'
      f' {y.dtype} {list(y.shape)}.'
    )
  if not len(x):
    raise ExportError('There must be at least one example, got none.')
  if not np.isfinite(x).all():
    where = np.argwhere(~np.isfinite(x))[0]
    raise ExportError(
      f'The inputs x must be finite, got {x[tuple(where)]} in example'
      f' {where[0]}.'
    )
  num_classes = getattr(personalization, 'num_classes', None)
  num_classes = num_classes or predictions.shape[-1]
  wrong = y[(y < 0) | (y >= num_classes)]
  if len(wrong):
    raise ExportError(
      f'The labels y must be 0 to {num_classes - 1}, got {wrong[0]}.'
    )
  as_given, x = x, x.astype(x_spec.dtype.as_numpy_dtype)
  if x_spec.dtype.is_integer and not np.array_equal(x, as_given):
    wrong = as_given[x != as_given][0]
    raise ExportError(
      f'The inputs x must be {x_spec.dtype.name}, as the data that the model'
      f' was trained on, got {wrong}.'
    )
  return x, y.astype(y_spec.dtype.as_numpy_dtype)


def _personalize(
  keras_model: tf.keras.Model,
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[np.ndarray, np.ndarray],
  max_grad_norm: float,
  feature_layer: str | None,
) -> _Personalized:
  """Checks that the parts fit each other, and puts them together."""
  if not isinstance(
    personalization,
    (
      personalizations.Maml,
      personalizations.NoPersonalization,
      personalizations.Proto,
    ),
  ):
    raise ExportError(
      'Only Maml, Proto and NoPersonalization can be exported, got'
      f' {personalization!r}.'
    )
  personalization.check_model(model)
  if not isinstance(keras_model, tf.keras.Model) or models._is_subclassed(
    keras_model
  ):
    raise ExportError(
      'Only a functional or sequential Keras model can be exported, got'
      f' {type(keras_model).__name__}.'
    )
  shapes = [w.shape for w in tf.nest.flatten(model.initial_weights)]
  meta_weights = models.ModelWeights(
    tuple(v.numpy() for v in keras_model.trainable_variables),
    tuple(v.numpy() for v in keras_model.non_trainable_variables),
  )
  found = [w.shape for w in tf.nest.flatten(meta_weights)]
  if shapes != found:
    raise ExportError(
      'The Keras model must be the one that the Model was made of: its weights'
      f' are of shapes {found}, those of the Model {shapes}.'
    )
  x_spec = models.split_batch(model.input_spec)[0]
  x, y = data
  batches = _batches(model, x, y)
  personalized, predictions = _run(
    model, personalization, meta_weights, batches, max_grad_norm
  )
  network = tf.keras.models.clone_model(keras_model)
  inputs = tf.keras.layers.Input(x_spec.shape[1:], dtype=x_spec.dtype, name='x')
  if isinstance(personalization, personalizations.Proto):
    _assign(network, meta_weights)
    outputs = _nearest_prototype(
      _features(network, feature_layer), personalized, inputs
    )
    gives_logits = True
  else:
    _assign(network, personalized)
    outputs = network(inputs)
    gives_logits = not _ends_in_softmax(network)
  if gives_logits:
    predictions = tf.nn.softmax(predictions).numpy()
    outputs = tf.keras.layers.Softmax(name='probabilities')(outputs)
  result = _Personalized(
    tf.keras.Model(inputs, outputs, name='personalized'),
    network,
    meta_weights,
    predictions,
  )
  if not np.isfinite(predictions).all():
    raise ExportError(
      'The personalized model gives numbers that are not finite: the'
      ' personalization diverged, or the meta-model has.'
    )
  return result


def _batches(model: models.Model, x: np.ndarray, y: np.ndarray):
  batch = {'x': x, 'y': y}
  if not isinstance(model.input_spec, dict):
    batch = (x, y)
  return tf.data.Dataset.from_tensor_slices(batch).batch(_BATCH_SIZE)


def _run(model, personalization, weights, batches, max_grad_norm):
  """Personalizes, and predicts the same examples, as the personalized test."""

  @tf.function
  def personalize():
    constants = tf.nest.map_structure(tf.constant, weights)
    return personalization.personalize(model, constants, batches, max_grad_norm)

  @tf.function
  def predict(personalized, batch):
    return personalization.evaluate(model, personalized, batch).predictions

  personalized = personalize()
  predictions = [predict(personalized, batch) for batch in batches]
  return personalized, np.concatenate(predictions)


def _assign(network: tf.keras.Model, weights: models.ModelWeights) -> None:
  variables = network.trainable_variables + network.non_trainable_variables
  values = (*weights.trainable, *weights.non_trainable)
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)


def _features(
  network: tf.keras.Model, feature_layer: str | None
) -> tf.keras.Model:
  """The part of the network that gives the feature, flat."""
  place, is_input = models._feature_layer(network, feature_layer)
  layer = models._leaves(network)[place]
  try:
    feature = layer.input if is_input else layer.output
    features = tf.keras.Model(network.inputs, feature)
  except (AttributeError, TypeError, ValueError) as e:
    raise ExportError(
      f'The feature of the prototypes, at the layer {layer.name!r}, is inside'
      ' of a nested model or used more than once, and cannot be cut out. Build'
      ' the network of layers only.'
    ) from e
  if len(feature.shape) == 2:
    return features
  return tf.keras.Sequential([features, tf.keras.layers.Flatten()])


def _nearest_prototype(
  features: tf.keras.Model, prototypes: Any, inputs: Any
) -> Any:
  """The logits -‖f - p_c‖², but for what is the same in all classes.

  That is a Dense layer: with the mean m of the prototypes, the rest is
  2 f·(p_c - m) - ‖p_c‖² + ‖m‖².
  """
  centers = prototypes.centers.numpy().astype(np.float64)
  known = prototypes.known.numpy()
  mean = centers[known].mean(axis=0)
  kernel = np.where(known[:, None], 2 * (centers - mean), 0.0).T
  bias = np.sum((mean - centers) * (mean + centers), axis=1)
  layer = tf.keras.layers.Dense(len(centers), name='prototypes')
  outputs = layer(features(inputs))
  layer.set_weights([kernel, np.where(known, bias, _NEVER)])
  return outputs


def _ends_in_softmax(network: tf.keras.Model) -> bool:
  layer = models._leaves(network)[-1]
  return isinstance(layer, tf.keras.layers.Softmax) or (
    getattr(layer, 'activation', None) is tf.keras.activations.softmax
  )


def _functions(
  personalized: _Personalized,
  model: models.Model,
  personalization: personalizations.Personalization,
  max_grad_norm: float,
) -> dict[str, Any]:
  """The functions of the SavedModel and of the TensorFlow Lite model."""
  x_spec, y_spec = models.split_batch(model.input_spec)
  x_spec = tf.TensorSpec([None, *x_spec.shape[1:]], x_spec.dtype, 'x')
  y_spec = tf.TensorSpec([None], y_spec.dtype, 'y')
  step_spec = tf.TensorSpec([], tf.int32, 'step')
  path_spec = tf.TensorSpec([], tf.string, 'path')
  keras_model, network = personalized.keras_model, personalized.network

  @tf.function(input_signature=[x_spec])
  def infer(x):
    return {'probabilities': keras_model(x, training=False)}

  if not isinstance(personalization, personalizations.Maml):
    return {'infer': infer}
  variables = network.trainable_variables
  names = [f'weight_{i}' for i in range(len(variables))]

  # Each signature has an input, as TensorFlow Lite for Java demands.
  @tf.function(input_signature=[x_spec, y_spec, step_spec])
  def personalize(x, y, step):
    for variable, value in zip(
      variables, personalized.meta_weights.trainable, strict=True
    ):
      variable.assign(tf.where(step == 0, value, variable))
    with tf.GradientTape() as tape:
      loss = model.loss(y, network(x, training=True))
    gradients = tape.gradient(
      loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    gradients = base.clip(gradients, max_grad_norm)
    for variable, gradient in zip(variables, gradients, strict=True):
      variable.assign_sub(personalization.learning_rate * gradient)
    return {'loss': loss, 'num_steps': tf.constant(personalization.num_steps)}

  @tf.function(input_signature=[path_spec])
  def save(path):
    tf.raw_ops.Save(
      filename=path,
      tensor_names=names,
      data=[variable.read_value() for variable in variables],
    )
    return {'path': path}

  @tf.function(input_signature=[path_spec])
  def restore(path):
    for variable, name in zip(variables, names, strict=True):
      value = tf.raw_ops.Restore(
        file_pattern=path, tensor_name=name, dt=variable.dtype
      )
      variable.assign(tf.ensure_shape(value, variable.shape))
    return {'path': path}

  return {
    'infer': infer,
    'personalize': personalize,
    'save': save,
    'restore': restore,
  }


def _convert(saved_model: str, needs_tensorflow: bool) -> bytes:
  converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
  if needs_tensorflow:
    converter.experimental_enable_resource_variables = True
    converter.target_spec.supported_ops = [
      tf.lite.OpsSet.TFLITE_BUILTINS,
      tf.lite.OpsSet.SELECT_TF_OPS,
    ]
  try:
    return converter.convert()
  except Exception as e:
    # Without where it is in the graph.
    reason = str(e).splitlines()[0].split('): ')[-1]
    raise ExportError(
      f'TensorFlow Lite cannot convert the model: {reason}'
    ) from e


def _differences(
  folder: str,
  personalized: _Personalized,
  personalization: personalizations.Personalization,
  x: np.ndarray,
  y: np.ndarray,
) -> dict[str, float]:
  """How far the files are from the personalization, each read again."""
  keras, saved_model, tflite = (os.path.join(folder, name) for name in _NAMES)

  def difference(predict) -> float:
    starts = range(0, len(x), _BATCH_SIZE)
    found = [np.asarray(predict(x[i : i + _BATCH_SIZE])) for i in starts]
    return float(
      np.max(np.abs(np.concatenate(found) - personalized.probabilities))
    )

  keras_model = tf.keras.models.load_model(keras, compile=False)
  serve = tf.saved_model.load(saved_model).signatures['serving_default']
  interpreter = tf.lite.Interpreter(tflite)
  infer = interpreter.get_signature_runner('infer')
  differences = {
    'model.keras': difference(lambda x: keras_model(x, training=False)),
    'saved_model': difference(lambda x: serve(x=x)['probabilities']),
    'model.tflite': difference(lambda x: infer(x=x)['probabilities']),
  }
  if isinstance(personalization, personalizations.Maml):
    personalize = interpreter.get_signature_runner('personalize')
    for step in range(personalization.num_steps):
      personalize(x=x, y=y, step=np.array(step, np.int32))
    differences['on_device'] = difference(lambda x: infer(x=x)['probabilities'])
  return differences


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps what C++ writes to stderr, by the page, from the user."""
  kept = os.dup(2)
  with open(os.devnull, 'w') as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
