"""Makes the personalized model of one client of Keras' own layers."""

from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations
from tff_debias.export import cases
from tff_debias.export import checks

BATCH_SIZE = 500


class Personalized(NamedTuple):
  """A personalized model.

  Attributes:
    keras_model: The model, from inputs to probabilities.
    case: The case that made it.
    probabilities: The personalization's own probabilities for the examples.
  """

  keras_model: tf.keras.Model
  case: cases.Case
  probabilities: np.ndarray


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
    TypeError: If `model` is no model.
  """
  model = models.as_model(model)
  return personalize(
    keras_model,
    model,
    personalization,
    checks.check_examples(model, personalization, data),
    max_grad_norm,
    feature_layer,
  ).keras_model


def personalize(
  keras_model: tf.keras.Model,
  model: models.Model,
  personalization: personalizations.Personalization,
  data: tuple[np.ndarray, np.ndarray],
  max_grad_norm: float | None,
  feature_layer: str | None,
) -> Personalized:
  """As `personalized_keras_model`, with examples that were checked."""
  case_class = cases.find(personalization)
  personalization.check_model(model)
  meta_weights = checks.check_keras_model(keras_model, model)
  case = case_class(
    personalization,
    model,
    meta_weights,
    tf.keras.models.clone_model(keras_model),
    personalization.grad_norm_bound(max_grad_norm),
    feature_layer,
  )
  personalized, predictions = _run(case, data)
  x_spec = models.split_batch(model.input_spec)[0]
  inputs = tf.keras.layers.Input(x_spec.shape[1:], dtype=x_spec.dtype, name='x')
  outputs, are_logits = case.outputs(personalized, inputs)
  if are_logits:
    predictions = tf.nn.softmax(predictions).numpy()
    outputs = tf.keras.layers.Softmax(name='probabilities')(outputs)
  if not np.isfinite(predictions).all():
    raise checks.ExportError(
      'The personalized model gives numbers that are not finite: the'
      ' personalization diverged, or the meta-model has.'
    )
  return Personalized(
    tf.keras.Model(inputs, outputs, name='personalized'), case, predictions
  )


def _run(
  case: cases.Case, data: tuple[np.ndarray, np.ndarray]
) -> tuple[Any, np.ndarray]:
  """Personalizes, and predicts the same examples, as the personalized test."""
  is_mapping = isinstance(case.model.input_spec, dict)
  batches = tf.data.Dataset.from_tensor_slices(
    dict(zip('xy', data, strict=True)) if is_mapping else data
  ).batch(BATCH_SIZE)

  @tf.function
  def personalize():
    constants = tf.nest.map_structure(tf.constant, case.meta_weights)
    return case.personalization.personalize(
      case.model, constants, batches, case.max_grad_norm
    )

  @tf.function
  def predict(personalized, batch):
    return case.personalization.evaluate(
      case.model, personalized, batch
    ).predictions

  personalized = personalize()
  predictions = [predict(personalized, batch) for batch in batches]
  return personalized, np.concatenate(predictions)
