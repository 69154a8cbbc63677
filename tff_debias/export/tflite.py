"""Makes the SavedModel and the TensorFlow Lite model, which has signatures."""

import os
from typing import Any

import tensorflow as tf

from tff_debias import checks as checks_lib
from tff_debias import models
from tff_debias.export import checks
from tff_debias.export import keras


def save(
  personalized: keras.Personalized,
  saved_model: str,
  tflite: str,
  scratch: str,
) -> None:
  """Writes both to their paths; `scratch` is a folder for other files."""
  functions = _functions(personalized)
  module = tf.Module()
  module.tracked = personalized.keras_model.variables
  tf.saved_model.save(
    module, saved_model, {'serving_default': functions['infer']}
  )
  with open(tflite, 'wb') as file:
    folder = os.path.join(scratch, 'signatures')
    tf.saved_model.save(module, folder, functions)
    file.write(_convert(folder, personalized.case.trains_on_device))


def _functions(personalized: keras.Personalized) -> dict[str, Any]:
  keras_model, case = personalized.keras_model, personalized.case
  x_spec, y_spec = models.split_batch(case.model.input_spec)
  x_spec = tf.TensorSpec([None, *x_spec.shape[1:]], x_spec.dtype, 'x')
  y_spec = tf.TensorSpec([None], y_spec.dtype, 'y')
  step_spec = tf.TensorSpec([], tf.int32, 'step')
  path_spec = tf.TensorSpec([], tf.string, 'path')
  variables = case.network.trainable_variables
  names = [f'weight_{i}' for i in range(len(variables))]

  # Each signature has an input, as TensorFlow Lite for Java demands.
  @tf.function(input_signature=[x_spec])
  def infer(x):
    return {'probabilities': keras_model(x, training=False)}

  @tf.function(input_signature=[x_spec, y_spec, step_spec])
  def personalize(x, y, step):
    loss, num_steps = case.training_step(x, y, step)
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

  functions = {'infer': infer}
  if case.trains_on_device:
    functions.update(personalize=personalize, save=save, restore=restore)
  return functions


def _convert(saved_model: str, trains_on_device: bool) -> bytes:
  converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
  if trains_on_device:
    converter.experimental_enable_resource_variables = True
    converter.target_spec.supported_ops = [
      tf.lite.OpsSet.TFLITE_BUILTINS,
      tf.lite.OpsSet.SELECT_TF_OPS,
    ]
  try:
    return converter.convert()
  except Exception as e:
    # Without its place in the graph.
    reason = checks_lib.first_line(e).split('): ')[-1]
    raise checks.ExportError(
      f'TensorFlow Lite cannot convert the model: {reason}.'
    ) from e
