"""Refuses what cannot be exported, before anything is computed."""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations

#: The files of an export.
NAMES = ('model.keras', 'saved_model', 'model.tflite')


class ExportError(ValueError):
  """The model cannot be personalized or exported; it says why, and a remedy."""


def check_directory(directory: str) -> None:
  """Refuses a path that is neither free nor an earlier export."""
  if not os.path.lexists(directory):
    return
  if not os.path.isdir(directory):
    raise ExportError(f'{directory} is no directory: name another one.')
  others = set(os.listdir(directory)).difference(NAMES)
  if others:
    raise ExportError(
      f'{directory} holds something else than an exported model'
      f' ({", ".join(sorted(others)[:5])}): name another directory.'
    )


def check_examples(
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[Any, Any],
) -> tuple[np.ndarray, np.ndarray]:
  """The arrays `(x, y)` in the dtypes of the model, if they suit it."""
  x_spec, y_spec = models.split_batch(model.input_spec)
  predictions = model.output_spec.predictions
  for name, spec, rank in (
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
        f' {name} of this model is {spec}.'
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


def check_keras_model(
  keras_model: tf.keras.Model, model: models.Model
) -> models.ModelWeights:
  """The weights of the Keras model, if `model` can have been made of it."""
  if not isinstance(keras_model, tf.keras.Model) or models.is_subclassed(
    keras_model
  ):
    raise ExportError(
      'Only a functional or sequential Keras model can be exported, got'
      f' {type(keras_model).__name__}.'
    )
  weights = tf.nest.flatten(
    models.ModelWeights.from_model(keras_model).convert_variables_to_arrays()
  )
  shapes = [w.shape for w in tf.nest.flatten(model.initial_weights)]
  found = [w.shape for w in weights]
  if shapes != found:
    raise ExportError(
      'The Keras model must be the one that the Model was made of: its weights'
      f' are of shapes {found}, those of the Model {shapes}.'
    )
  return tf.nest.pack_sequence_as(model.initial_weights, weights)
