"""Writes the personalized model of one client: all files of it, or none."""

from collections.abc import Iterator
import contextlib
import os
import tempfile
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations
from tff_debias.export import checks
from tff_debias.export import keras as keras_lib
from tff_debias.export import tflite as tflite_lib
from tff_debias.export import verification


class Export(NamedTuple):
  """The result of `export_personalized_model`.

  Attributes:
    keras: The path of `model.keras`.
    saved_model: The path of the folder `saved_model`.
    tflite: The path of `model.tflite`.
    keras_model: The personalized model.
    difference: For each of the files the largest difference of a probability
      from the personalization itself, on the client's examples; for MAML also
      `on_device`, after the steps that the TensorFlow Lite model made itself.
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
  probabilities float32 `[b, classes]`. Raw inputs suit them if the first layers
  of the Keras model prepare them, for example `tf.keras.layers.Rescaling`. The
  TensorFlow Lite model has these signatures. Only `Maml` has those after the
  first, and they need TensorFlow Lite's `select-tf-ops`:

  * `infer(x) -> probabilities`, with the present weights. At first these are
    the weights of the personalized model.
  * `personalize(x, y, step) -> loss, num_steps`: a step of MAML on all of the
    client's examples, `y` int32 `[b]`. Step 0 begins at the meta-model, and
    the steps 0, 1, …, num_steps - 1 make a personalized model. The loss is the
    one before the step.
  * `save(path) -> path` writes the weights to a file, and `restore(path) ->
    path` reads them.

  All files are read again and compared with the personalization on the client's
  examples. Only then do they get their names, so there is never half a model.

  Args:
    keras_model: The Keras model that `model` was made of, a functional or
      sequential one, with the weights of the meta-model:
      `process.get_model_weights(state).assign_weights_to(keras_model)` sets
      them. It is not changed.
    model: As `build_learning_process` takes it, but none that
      `tff.learning.models.functional_model_from_keras` made: TFF runs it only
      inside of its own computations.
    personalization: `Maml`, `Proto`, `NoPersonalization`, or one that
      `tff_debias.export.register` made exportable.
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
      the directory holds something else, or the files do not agree.
    TypeError: If `model` is no model.
    OSError: If they cannot be written. Nothing is left behind then.
  """
  directory = os.path.abspath(directory)
  model = models.as_model(model)
  checks.check_directory(directory)
  x, y = checks.check_examples(model, personalization, data)
  personalized = keras_lib.personalize(
    keras_model,
    model,
    personalization,
    (x, y),
    max_grad_norm,
    feature_layer,
  )
  os.makedirs(os.path.dirname(directory), exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{os.path.basename(directory)}.', dir=os.path.dirname(directory)
  ) as scratch:
    new = os.path.join(scratch, 'new')
    os.mkdir(new)
    keras, saved_model, tflite = (
      os.path.join(new, name) for name in checks.NAMES
    )
    with _quiet():
      personalized.keras_model.save(keras)
      tflite_lib.save(personalized, saved_model, tflite, scratch)
      difference = verification.verify(new, personalized, x, y)
    if os.path.lexists(directory):
      os.rename(directory, os.path.join(scratch, 'old'))
    os.rename(new, directory)
  return Export(
    *(os.path.join(directory, name) for name in checks.NAMES),
    personalized.keras_model,
    difference,
  )


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
