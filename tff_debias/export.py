"""Makes, writes and checks a client's own model: one path, so one file.

The model is for use without this package: a Keras model, a SavedModel, and a
model of TensorFlow Lite that can take the steps of MAML on the device.
"""

import os
import shutil
import tempfile
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tff_debias import checks
from tff_debias import models
from tff_debias import personalizations
from tff_debias.personalizations import base
from tff_debias.personalizations import proto

_NAMES = ('model.keras', 'saved_model', 'model.tflite')
# The most that a probability may differ between the files and the method.
_TOLERANCE = 1e-3
# The most examples that are worked on at once, and compared.
_BATCH_SIZE = 500


class ExportError(ValueError):
  """The model cannot be personalized or exported; it says why, and a remedy."""


class Export(NamedTuple):
  """The result of `export_personalized_model`.

  Attributes:
    keras: The path of `model.keras`.
    saved_model: The path of the folder `saved_model`.
    tflite: The path of `model.tflite`.
    keras_model: The personalized model.
    difference: For each of the files the largest difference of a probability
      from the personalization itself, on the client's first 500 examples. For
      MAML also `on_device`, after the steps that the TensorFlow Lite model made
      itself, unless Dropout makes these random.
  """

  keras: str
  saved_model: str
  tflite: str
  keras_model: tf.keras.Model
  difference: dict[str, float]


def export_personalized_model(
  keras_model: tf.keras.Model,
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[Any, Any],
  directory: str | os.PathLike[str],
  *,
  max_grad_norm: float | None = None,
  feature_layer: str | None = None,
) -> Export:
  """Personalizes a meta-model for a client and writes the client's model.

  The directory gets `model.keras`, which Keras loads without this package;
  `saved_model`, with `serving_default`; and `model.tflite`. All of them take
  inputs `[b, ...]` like those that the model was trained on, and give the
  probabilities float32 `[b, classes]`. A network with one output gives those of
  two classes. Raw inputs suit the files if the first layers of the Keras model
  prepare them, for example `tf.keras.layers.Rescaling`. The TensorFlow Lite
  model has these signatures. Only `Maml` has those after the first, and they
  need TensorFlow Lite's `select-tf-ops`:

  * `infer(x) -> probabilities`, with the present weights. At first these are
    the weights of the personalized model.
  * `personalize(x, y, step) -> loss, num_steps`: a step of MAML on all of the
    client's examples, `y` int32 `[b]`. Step 0 begins at the meta-model, and
    the steps 0, 1, …, num_steps - 1 make a personalized model. The loss is the
    one before the step, with the network's own losses (regularizers).
  * `save(path) -> path` writes the weights to a file, and `restore(path) ->
    path` reads them.

  All files are read again and compared with the personalization on the client's
  examples. Only then do they come into the directory.

  Args:
    keras_model: The Keras model that `model` was made of, a functional or
      sequential one, with the weights of the meta-model:
      `process.get_model_weights(state).assign_weights_to(keras_model)` sets
      them. It is not changed.
    model: As `build_learning_process` takes it, but none that
      `tff.learning.models.functional_model_from_keras` made: TFF runs it only
      inside of its own computations.
    personalization: One whose `personalize` gives the weights of the model, as
      `Maml` and `NoPersonalization` do, or prototypes, as `Proto` does.
    data: The client's examples `(x, y)`, arrays: inputs `[examples, ...]` and
      the classes, integers `[examples]`.
    directory: Where to write. An earlier export there is replaced.
    max_grad_norm: The bound on the norm of a gradient in a step of MAML;
      `math.inf` for none. By default the personalization's
      `default_max_grad_norm`, 10 for `Maml`.
    feature_layer: As it was given to `tff_debias.from_keras`.

  Returns:
    An `Export`.

  Raises:
    ExportError: If the model cannot be exported, the examples do not suit it,
      or the files do not agree.
    TypeError: If `model` is no model.
  """
  client = _Client(
    keras_model, model, personalization, data, max_grad_norm, feature_layer
  )
  with tempfile.TemporaryDirectory() as folder:
    files = [os.path.join(folder, name) for name in _NAMES]
    client.keras_model.save(files[0])
    _save_signatures(client, *files[1:])
    difference = _verify(client, files)
    shutil.copytree(folder, directory, dirs_exist_ok=True)
  keras, saved_model, tflite = (
    os.path.join(os.path.abspath(directory), name) for name in _NAMES
  )
  return Export(keras, saved_model, tflite, client.keras_model, difference)


def personalized_keras_model(
  keras_model: tf.keras.Model,
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[Any, Any],
  *,
  max_grad_norm: float | None = None,
  feature_layer: str | None = None,
) -> tf.keras.Model:
  """The personalized model of a client, made of Keras' own layers.

  The arguments and errors are those of `export_personalized_model`.

  Returns:
    A new Keras model that gives the probabilities float32 `[b, classes]` of
    inputs. A class without an example has no prototype, and the probability 0.
  """
  return _Client(
    keras_model, model, personalization, data, max_grad_norm, feature_layer
  ).keras_model


class _Client:
  """A client with examples `x`, `y` and its personalized model.

  Attributes:
    keras_model: The personalized model, from inputs to probabilities.
    network: The part of it that is a clone of the user's network.
    probabilities: The personalization's own probabilities of the first inputs.
    maml: The personalization, if `take_step` is a step of it; else `None`.
  """

  def __init__(
    self,
    keras_model: tf.keras.Model,
    model: models.Model,
    personalization: personalizations.Personalization,
    data: tuple[Any, Any],
    max_grad_norm: float | None,
    feature_layer: str | None,
  ):
    self._model = models.as_model(model)
    self._personalization = personalization
    self._max_grad_norm = personalization.grad_norm_bound(max_grad_norm)
    self.x, self.y = _examples(self._model, personalization, data)
    self._meta_weights = _meta_weights(keras_model, self._model)
    personalization.check_model(self._model)
    self.maml: personalizations.Maml | None = None
    if isinstance(personalization, personalizations.Maml):
      # A class derived from MAML may take other steps.
      if type(personalization).personalize is personalizations.Maml.personalize:
        self.maml = personalization
    personalized, predictions = self._personalize()
    if not np.isfinite(predictions).all():
      raise ExportError(
        'The personalized model gives numbers that are not finite: the'
        ' personalization diverged, or the meta-model has.'
      )
    self.network = tf.keras.models.clone_model(keras_model)
    inputs = tf.keras.layers.Input(
      self.x.shape[1:], dtype=self.x.dtype, name='x'
    )
    are_logits = True
    if isinstance(personalized, proto.Prototypes):
      self._meta_weights.assign_weights_to(self.network)
      outputs = _prototype_logits(
        self.network, personalized, feature_layer, inputs
      )
    elif isinstance(personalized, models.ModelWeights):
      personalized.assign_weights_to(self.network)
      outputs = self.network(inputs)
      are_logits = self._gives_logits(predictions)
    else:
      raise ExportError(
        f'{type(personalization).__name__} cannot be exported: its personalize'
        f' gives a {type(personalized).__name__}, and not the weights of the'
        ' model or prototypes.'
      )
    self._softmax = _softmax(predictions.shape[1], are_logits)
    self.probabilities = self._softmax(predictions).numpy()
    self.keras_model: tf.keras.Model = tf.keras.Model(
      inputs, self._softmax(outputs), name='personalized'
    )
    worst = self.difference(self.keras_model(self.first_x, training=False))
    if not worst < _TOLERANCE:
      raise ExportError(
        'The clone of the Keras model gives other probabilities than the'
        f' personalization, up to {worst:.2g}. Is it the one that the Model was'
        ' made of?'
      )

  @property
  def first_x(self) -> np.ndarray:
    """The inputs of the first examples, on which models are compared."""
    return self.x[:_BATCH_SIZE]

  def difference(self, probabilities: Any) -> float:
    """The largest difference from the personalization's own probabilities."""
    return float(np.abs(probabilities - self.probabilities).max())

  def is_random(self) -> bool:
    """Whether the personalization ends elsewhere each time."""
    return self.difference(self._softmax(self._personalize()[1])) > _TOLERANCE

  def take_step(
    self, x: tf.Tensor, y: tf.Tensor, step: tf.Tensor
  ) -> tuple[tf.Tensor, int]:
    """A step of MAML, which changes the network: its loss, and their number."""
    assert self.maml
    variables = self.network.trainable_variables
    weights = tuple(
      tf.where(step == 0, meta_weight, variable)
      for meta_weight, variable in zip(
        self._meta_weights.trainable, variables, strict=True
      )
    )
    with tf.GradientTape() as tape:
      tape.watch(weights)
      loss = base.supervised_result(
        self._model,
        models.ModelWeights(weights, self._meta_weights.non_trainable),
        self._batch(x, y),
        training=True,
      ).loss
    gradients = base.gradient(tape, loss, weights)
    gradients = base.clip(gradients, self._max_grad_norm)
    for variable, w, g in zip(variables, weights, gradients, strict=True):
      variable.assign(w - self.maml.learning_rate * g)
    return loss, self.maml.num_steps

  def _batch(self, x: Any, y: Any) -> Any:
    is_mapping = isinstance(self._model.input_spec, dict)
    return {'x': x, 'y': y} if is_mapping else (x, y)

  @tf.function(autograph=False)
  def _personalize(self) -> tuple[Any, tf.Tensor]:
    """The result of `personalize`, and the predictions of the first inputs."""
    examples = tf.data.Dataset.from_tensor_slices(self._batch(self.x, self.y))
    personalized = self._personalization.personalize(
      self._model,
      tf.nest.map_structure(tf.constant, self._meta_weights),
      examples.batch(_BATCH_SIZE),
      self._max_grad_norm,
    )
    first = self._batch(self.first_x, self.y[:_BATCH_SIZE])
    result = self._personalization.evaluate(
      self._model, personalized, tf.nest.map_structure(tf.constant, first)
    )
    return personalized, result.predictions

  @tf.function(autograph=False)
  def _predict(self, weights: models.ModelWeights) -> tf.Tensor:
    x = tf.constant(self.first_x)
    return self._model.apply(weights, x, False).predictions

  def _gives_logits(self, predictions: tf.Tensor) -> bool:
    """Whether the model gives logits, and not probabilities.

    The numbers say so, because layers may hide a softmax. Few logits may all
    be in [0, 1], so the model is also called with weights that are far off.
    """
    rng, outputs = np.random.default_rng(0), [predictions]
    others = self._meta_weights.non_trainable
    for _ in range(2):
      far = tuple(
        np.float32(w + rng.normal(size=w.shape))
        for w in self._meta_weights.trainable
      )
      outputs.append(self._predict(models.ModelWeights(far, others)))
    found = np.concatenate(outputs)
    found = found[np.isfinite(found).all(axis=1)]
    if found.min() < -_TOLERANCE or found.max() > 1 + _TOLERANCE:
      return True
    sums = found.sum(axis=1)
    if found.shape[1] > 1 and np.abs(sums - 1).max() > _TOLERANCE:
      raise ExportError(
        'The model gives neither logits nor the probabilities of classes: its'
        f' outputs are in [0, 1], and their sum is {sums[0]:.3g} for the first'
        ' example, not 1. Let it give logits, or end it in a softmax.'
      )
    return False


def _examples(
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[Any, Any],
) -> tuple[np.ndarray, np.ndarray]:
  """The arrays `(x, y)` in the dtypes of the model, if they suit it."""
  x_spec, y_spec = models.split_batch(model.input_spec)
  predictions = model.output_spec.predictions
  is_classifier = all(
    isinstance(spec, tf.TensorSpec) for spec in (x_spec, y_spec, predictions)
  )
  if not is_classifier or (y_spec.shape.rank, predictions.shape.rank) != (1, 2):
    raise ExportError(
      'Only a classifier can be exported, with one tensor as its input, labels'
      ' [b] and outputs [b, classes]; this model has the inputs'
      f' {x_spec}, the labels {y_spec} and the outputs {predictions}.'
    )
  given, y = (np.asarray(array) for array in data)
  is_right = given.shape[1:] == tuple(x_spec.shape[1:]) and len(given) > 0
  if not is_right or y.shape != given.shape[:1] or y.dtype.kind not in 'iu':
    shape = ', '.join(map(str, ['examples', *x_spec.shape[1:]]))
    raise ExportError(
      f'The inputs x must be [{shape}], got {list(given.shape)}, and the labels'
      f' y integers, one for each input, got {y.dtype} {list(y.shape)}; one'
      ' example at least.'
    )
  num_classes = getattr(personalization, 'num_classes', None)
  num_classes = num_classes or max(predictions.shape[-1], 2)
  for wrong in y[(y < 0) | (y >= num_classes)]:
    raise ExportError(
      f'The labels y must be 0 to {num_classes - 1}, got {wrong}.'
    )
  x = given.astype(x_spec.dtype.as_numpy_dtype)
  if x_spec.dtype.is_integer and not np.array_equal(x, given):
    raise ExportError(
      f'The inputs x must be {x_spec.dtype.name}, as the data that the model'
      f' was trained on, got {given[x != given][0]}.'
    )
  return x, y.astype(y_spec.dtype.as_numpy_dtype)


def _meta_weights(
  keras_model: tf.keras.Model, model: models.Model
) -> models.ModelWeights:
  """The weights of the Keras model, if `model` can have been made of it."""
  if models.is_subclassed(keras_model):
    raise ExportError(
      'Only a functional or sequential Keras model can be exported, got'
      f' {type(keras_model).__name__}.'
    )
  if not all(isinstance(w, tf.Variable) for w in keras_model.weights):
    raise ExportError(
      'A network with a vocabulary that was adapted (TextVectorization) cannot'
      ' be exported. Let it take the numbers that this layer gives: call the'
      ' layer before the network.'
    )
  weights = models.ModelWeights(
    tuple(v.numpy() for v in keras_model.trainable_variables),
    tuple(v.numpy() for v in keras_model.non_trainable_variables),
  )
  if models.specs_of(weights) != models.specs_of(model.initial_weights):
    raise ExportError(
      'The Keras model must be the one that the Model was made of, but its'
      ' weights are of other shapes.'
    )
  return weights


def _softmax(num_outputs: int, are_logits: bool) -> tf.keras.Sequential:
  """The layers from the outputs of a model to the probabilities of classes."""
  layers = tf.keras.Sequential([tf.keras.layers.Input((num_outputs,))])
  if num_outputs == 1:
    # The logits 0, z of two classes; or their probabilities 1 - p, p.
    kernel, bias = ([[0, 1]], [0, 0]) if are_logits else ([[-1, 1]], [1, 0])
    weights = [np.array(kernel), np.array(bias)]
    layers.add(tf.keras.layers.Dense(2, weights=weights, trainable=False))
  if are_logits:
    layers.add(tf.keras.layers.Softmax())
  return layers


def _prototype_logits(
  network: tf.keras.Model,
  prototypes: proto.Prototypes,
  feature_layer: str | None,
  inputs: Any,
) -> Any:
  """The logits -‖f - p_c‖², without the terms that all classes share.

  The mean of the prototypes is m. The rest is 2 f·(p_c - m) - ‖p_c‖² + ‖m‖²,
  a Dense layer behind the part of the network that gives the feature f.
  """
  layer, is_input = models.find_feature(network, feature_layer)
  assert layer, 'A network that was cloned is not subclassed.'
  try:
    feature = layer.input if is_input else layer.output
    features = tf.keras.Model(network.inputs, feature)
  except (AttributeError, TypeError, ValueError) as e:
    raise ExportError(
      f'The feature of the prototypes, at the layer {layer.name!r}, is inside a'
      ' nested model or used more than once, and cannot be cut out. Build the'
      ' network of layers only.'
    ) from e
  centers = prototypes.centers.numpy().astype(np.float64)
  known = prototypes.known.numpy()
  mean = centers[known].mean(axis=0)
  kernel = np.where(known[:, np.newaxis], 2 * (centers - mean), 0.0).T
  bias = np.sum((mean - centers) * (mean + centers), axis=1)
  # Finite, below any other logit, and with a probability of exactly 0.
  bias = np.where(known, bias, -1e30)
  classify = tf.keras.layers.Dense(
    len(centers), weights=[kernel, bias], name='prototypes'
  )
  return classify(tf.keras.layers.Flatten()(features(inputs)))


def _save_signatures(client: _Client, saved_model: str, tflite: str) -> None:
  """Writes the SavedModel, and the TensorFlow Lite model with signatures."""
  x_spec = tf.TensorSpec([None, *client.x.shape[1:]], client.x.dtype, 'x')
  y_spec = tf.TensorSpec([None], client.y.dtype, 'y')
  step_spec = tf.TensorSpec([], tf.int32, 'step')
  path_spec = tf.TensorSpec([], tf.string, 'path')
  variables = client.network.trainable_variables
  names = [f'weight_{i}' for i in range(len(variables))]

  # Each signature has an input, as TensorFlow Lite for Java demands.
  @tf.function(input_signature=[x_spec])
  def infer(x):
    return {'probabilities': client.keras_model(x, training=False)}

  @tf.function(input_signature=[x_spec, y_spec, step_spec], autograph=False)
  def personalize(x, y, step):
    loss, num_steps = client.take_step(x, y, step)
    return {'loss': loss, 'num_steps': tf.constant(num_steps)}

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

  module = tf.Module()
  module.tracked = client.keras_model.variables
  tf.saved_model.save(module, saved_model, {'serving_default': infer})
  signatures = {'infer': infer}
  if client.maml:
    signatures.update(personalize=personalize, save=save, restore=restore)
  with tempfile.TemporaryDirectory() as folder, open(tflite, 'wb') as file:
    tf.saved_model.save(module, folder, signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if client.maml:
      converter.experimental_enable_resource_variables = True
      converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
      ]
    try:
      file.write(converter.convert())
    except Exception as e:
      # Without its place in the graph.
      reason = checks.first_line(e).split('): ')[-1]
      raise ExportError(
        f'TensorFlow Lite cannot convert the model: {reason}.'
      ) from e


def _verify(client: _Client, files: list[str]) -> dict[str, float]:
  """Reads the files again; gives the `difference` of an `Export`."""
  keras, saved_model, tflite = files
  x = client.first_x
  try:
    keras_model = tf.keras.models.load_model(keras, compile=False)
  except Exception as e:
    raise ExportError(
      'Keras cannot load model.keras again. If the model has a Lambda or a'
      ' layer of your own, use layers of Keras in its place, or register it:'
      ' tf.keras.saving.register_keras_serializable. Keras said:'
      f' {checks.first_line(e)}.'
    ) from e
  serve = tf.saved_model.load(saved_model).signatures['serving_default']
  interpreter = tf.lite.Interpreter(tflite)
  infer = interpreter.get_signature_runner('infer')
  found = {
    'model.keras': keras_model(x, training=False),
    'saved_model': serve(x=x)['probabilities'],
    'model.tflite': infer(x=x)['probabilities'],
  }
  if client.maml:
    personalize = interpreter.get_signature_runner('personalize')
    for step in range(client.maml.num_steps):
      personalize(x=client.x, y=client.y, step=np.int32(step))
    found['on_device'] = infer(x=x)['probabilities']
  difference = {n: client.difference(p) for n, p in found.items()}
  # Random steps, as with Dropout, end elsewhere: they cannot be compared.
  is_near = difference.get('on_device', 0) < _TOLERANCE
  if not is_near and client.is_random():
    del difference['on_device']
  for name, worst in difference.items():
    # A NaN is not below anything either.
    if not worst < _TOLERANCE:
      raise ExportError(
        f'The exported model {name} gives other probabilities than the'
        f' personalization, up to {worst:.2g}.'
      )
  return difference
