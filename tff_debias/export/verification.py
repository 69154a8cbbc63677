"""Reads an export again and compares it with the personalization itself."""

from collections.abc import Callable
import os
from typing import Any

import numpy as np
import tensorflow as tf

from tff_debias.export import checks
from tff_debias.export import keras

#: The most that a probability may differ between the files and the method.
TOLERANCE = 1e-3


def verify(
  folder: str, personalized: keras.Personalized, x: np.ndarray, y: np.ndarray
) -> dict[str, float]:
  """The `difference` of an `Export`, refused if it is too large."""
  differences = {
    name: _difference(predict, x, personalized.probabilities)
    for name, predict in _predictions(folder, x, y)
  }
  for name, value in differences.items():
    # A NaN is not below anything either.
    if not value < TOLERANCE:
      raise checks.ExportError(
        f'The exported model {name} gives other probabilities than the'
        f' personalization, up to {value:.2g} (at most {TOLERANCE:g} is'
        ' right). The model may be random when it is trained (Dropout), or'
        ' not the Keras model that the Model was made of.'
      )
  return differences


def _predictions(folder: str, x: np.ndarray, y: np.ndarray):
  """Yields a name and a function from inputs to probabilities for each."""
  files = [os.path.join(folder, name) for name in checks.NAMES]
  keras_model = tf.keras.models.load_model(files[0], compile=False)
  yield checks.NAMES[0], lambda x: keras_model(x, training=False)
  serve = tf.saved_model.load(files[1]).signatures['serving_default']
  yield checks.NAMES[1], lambda x: serve(x=x)['probabilities']
  interpreter = tf.lite.Interpreter(files[2])
  infer = interpreter.get_signature_runner('infer')
  yield checks.NAMES[2], lambda x: infer(x=x)['probabilities']
  if 'personalize' in interpreter.get_signature_list():
    personalize = interpreter.get_signature_runner('personalize')
    step, num_steps = 0, 1
    while step < num_steps:
      num_steps = personalize(x=x, y=y, step=np.int32(step))['num_steps']
      step += 1
    yield 'on_device', lambda x: infer(x=x)['probabilities']


def _difference(
  predict: Callable[[np.ndarray], Any], x: np.ndarray, right: np.ndarray
) -> float:
  starts = range(0, len(x), keras.BATCH_SIZE)
  found = [np.asarray(predict(x[i : i + keras.BATCH_SIZE])) for i in starts]
  return float(np.max(np.abs(np.concatenate(found) - right)))
