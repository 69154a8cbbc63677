"""Writes the personalized model of one client, for use without this package."""

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
from tff_debias.export import client as client_lib

_NAMES = ('model.keras', 'saved_model', 'model.tflite')


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
  client = client_lib.Client(
    keras_model, model, personalization, data, max_grad_norm, feature_layer
  )
  with tempfile.TemporaryDirectory() as folder:
    files = [os.path.join(folder, name) for name in _NAMES]
    client.keras_model.save(files[0])
    _save_signatures(client, *files[1:])
    difference = _verify(client, *files)
    shutil.copytree(folder, directory, dirs_exist_ok=True)
  keras, saved_model, tflite = (
    os.path.join(os.path.abspath(directory), name) for name in _NAMES
  )
  return Export(keras, saved_model, tflite, client.keras_model, difference)


def _save_signatures(
  client: client_lib.Client, saved_model: str, tflite: str
) -> None:
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
      raise client_lib.ExportError(
        f'TensorFlow Lite cannot convert the model: {reason}.'
      ) from e


def _verify(
  client: client_lib.Client, keras: str, saved_model: str, tflite: str
) -> dict[str, float]:
  """Reads the files again; gives the `difference` of an `Export`."""
  x = client.x[: client_lib.BATCH_SIZE]
  try:
    keras_model = tf.keras.models.load_model(keras, compile=False)
  except Exception as e:
    raise client_lib.ExportError(
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
    # Random steps, as with Dropout, end elsewhere: they cannot be compared.
    personalize = interpreter.get_signature_runner('personalize')
    step, num_steps = np.int32(0), 1
    while step < num_steps:
      result = personalize(x=client.x, y=client.y, step=step)
      step, num_steps = step + np.int32(1), result['num_steps']
    found['on_device'] = infer(x=x)['probabilities']
  difference = {}
  for name, probabilities in found.items():
    worst = client.difference(probabilities)
    # A NaN is not below anything either.
    if worst < client_lib.TOLERANCE:
      difference[name] = worst
    elif name != 'on_device' or not client.is_random():
      raise client_lib.ExportError(
        f'The exported model {name} gives other probabilities than the'
        f' personalization, up to {worst:.2g}.'
      )
  return difference
