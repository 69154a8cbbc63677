"""Makes the personalized model of one client of Keras' own layers."""

from typing import Any

import numpy as np
import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations
from tff_debias.personalizations import base
from tff_debias.personalizations import proto

#: The most that a probability may differ between the files and the method.
TOLERANCE = 1e-3
#: The most examples that are worked on at once, and compared.
BATCH_SIZE = 500


class ExportError(ValueError):
  """The model cannot be personalized or exported; it says why, and a remedy."""


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
  return Client(
    keras_model, model, personalization, data, max_grad_norm, feature_layer
  ).keras_model


class Client:
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
    first = self.keras_model(self.x[:BATCH_SIZE], training=False)
    if not self.difference(first) < TOLERANCE:
      raise ExportError(
        'The clone of the Keras model gives other probabilities than the'
        f' personalization, up to {self.difference(first):.2g}. Is it the one'
        ' that the Model was made of?'
      )

  def difference(self, probabilities: Any) -> float:
    """The largest difference from the personalization's own probabilities."""
    return float(np.abs(probabilities - self.probabilities).max())

  def is_random(self) -> bool:
    """Whether the personalization ends elsewhere each time."""
    return self.difference(self._softmax(self._personalize()[1])) > TOLERANCE

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
    gradients = tape.gradient(loss, weights, unconnected_gradients='zero')
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
      examples.batch(BATCH_SIZE),
      self._max_grad_norm,
    )
    first = self._batch(self.x[:BATCH_SIZE], self.y[:BATCH_SIZE])
    result = self._personalization.evaluate(
      self._model, personalized, tf.nest.map_structure(tf.constant, first)
    )
    return personalized, result.predictions

  @tf.function(autograph=False)
  def _predict(self, weights: models.ModelWeights) -> tf.Tensor:
    x = tf.constant(self.x[:BATCH_SIZE])
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
    if found.min() < -TOLERANCE or found.max() > 1 + TOLERANCE:
      return True
    sums = found.sum(axis=1)
    if found.shape[1] > 1 and np.abs(sums - 1).max() > TOLERANCE:
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
  specs = (x_spec, y_spec, predictions)
  if not all(isinstance(spec, tf.TensorSpec) for spec in specs) or (
    y_spec.shape.rank != 1 or predictions.shape.rank != 2
  ):
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
  weights = models.ModelWeights(
    tuple(v.numpy() for v in keras_model.trainable_variables),
    tuple(v.numpy() for v in keras_model.non_trainable_variables),
  )
  shapes, expected = (
    [w.shape for w in tf.nest.flatten(group)]
    for group in (weights, model.initial_weights)
  )
  if shapes != expected:
    raise ExportError(
      'The Keras model must be the one that the Model was made of: its weights'
      f' are of shapes {shapes}, those of the Model {expected}.'
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
  place = models.place_of_feature(network, feature_layer)
  assert place, 'A network that was cloned is not subclassed.'
  layer, is_input = models.leaves(network)[place[0]], place[1]
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
