"""How each personalization becomes layers of Keras: one small class for each.

A personalization of your own can be exported after it has a class too:

    class MyCase(tff_debias.export.Case):
      def outputs(self, personalized, inputs):
        ...

    tff_debias.export.register(MyPersonalization, MyCase)
"""

import abc
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations
from tff_debias.export import checks
from tff_debias.personalizations import base

# Below any other logit, finite, and with a probability of exactly 0.
_NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Case(abc.ABC):
  """The export of one personalization, for one client.

  Attributes:
    personalization: The personalization.
    model: The model.
    meta_weights: The weights of the meta-model.
    network: A clone of the Keras model. Its weights are the case's to set.
    max_grad_norm: The bound on the norm of a gradient.
    feature_layer: As it was given to `tff_debias.from_keras`.
  """

  personalization: personalizations.Personalization
  model: models.Model
  meta_weights: models.ModelWeights
  network: tf.keras.Model
  max_grad_norm: float
  feature_layer: str | None

  #: Whether the TensorFlow Lite model can personalize itself.
  trains_on_device = False

  @abc.abstractmethod
  def outputs(self, personalized: Any, inputs: Any) -> tuple[Any, bool]:
    """The outputs of the personalized model, made of Keras' own layers.

    Args:
      personalized: The result of the personalization's `personalize`.
      inputs: The input, a Keras tensor.

    Returns:
      The outputs `[b, classes]`, and whether they are logits and so are the
      predictions of the personalization. Otherwise both are probabilities.
    """

  def training_step(
    self, x: tf.Tensor, y: tf.Tensor, step: tf.Tensor
  ) -> tuple[tf.Tensor, int]:
    """One step on a device, if `trains_on_device`: changes the network.

    Args:
      x: The inputs of all of the device's examples.
      y: Their labels.
      step: The number of the step. Step 0 begins at the meta-model.

    Returns:
      The loss before the step, and the number of steps of a personalization.
    """
    raise NotImplementedError


_CASES = {}


def register(
  personalization: type[personalizations.Personalization], case: type[Case]
) -> None:
  """Makes a personalization exportable.

  Args:
    personalization: Its class. A class derived from it may personalize in
      another way, so it needs a case of its own.
    case: The class of its case.

  Raises:
    TypeError: If they are not such classes.
  """
  for given, wanted in (
    (personalization, personalizations.Personalization),
    (case, Case),
  ):
    if not isinstance(given, type) or not issubclass(given, wanted):
      raise TypeError(
        f'{given!r} must be a class derived from {wanted.__name__}.'
      )
  _CASES[personalization] = case


def find(personalization: personalizations.Personalization) -> type[Case]:
  """The case that was registered for exactly this class, or an error."""
  kind = type(personalization)
  if kind not in _CASES:
    known = ', '.join(sorted(other.__name__ for other in _CASES))
    raise checks.ExportError(
      f'{kind.__name__} cannot be exported: there is no export case for it,'
      f' only for exactly {known}. Give it one with'
      f' tff_debias.export.register({kind.__name__}, ...).'
    )
  return _CASES[kind]


class _Network(Case):
  """The personalized model is the network with weights of its own."""

  def outputs(self, personalized, inputs):
    """See base class."""
    _assign(self.network, personalized)
    return self.network(inputs), not _ends_in_softmax(self.network)


class _GradientDescent(_Network):
  """MAML: the weights come from steps that a device can take itself."""

  trains_on_device = True

  def training_step(self, x, y, step):
    """See base class."""
    variables = self.network.trainable_variables
    for variable, value in zip(
      variables, self.meta_weights.trainable, strict=True
    ):
      variable.assign(tf.where(step == 0, value, variable))
    with tf.GradientTape() as tape:
      loss = self.model.loss(y, self.network(x, training=True))
    gradients = tape.gradient(
      loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    gradients = base.clip(gradients, self.max_grad_norm)
    for variable, gradient in zip(variables, gradients, strict=True):
      variable.assign_sub(self.personalization.learning_rate * gradient)
    return loss, self.personalization.num_steps


class _NearestPrototype(Case):
  """Proto: the network up to its feature, and a layer of the distances."""

  def outputs(self, personalized, inputs):
    """The logits -‖f - p_c‖², without the terms that all classes share.

    The mean of the prototypes is m. The rest is 2 f·(p_c - m) - ‖p_c‖² + ‖m‖²,
    a Dense layer.
    """
    _assign(self.network, self.meta_weights)
    centers = personalized.centers.numpy().astype(np.float64)
    known = personalized.known.numpy()
    mean = centers[known].mean(axis=0)
    kernel = np.where(known[:, None], 2 * (centers - mean), 0.0).T
    bias = np.sum((mean - centers) * (mean + centers), axis=1)
    layer = tf.keras.layers.Dense(len(centers), name='prototypes')
    outputs = layer(self._features()(inputs))
    layer.set_weights([kernel, np.where(known, bias, _NEVER)])
    return outputs, True

  def _features(self) -> tf.keras.Model:
    """The part of the network that gives the feature, flat."""
    place, is_input = models.place_of_feature(self.network, self.feature_layer)
    layer = models.leaves(self.network)[place]
    try:
      feature = layer.input if is_input else layer.output
      features = tf.keras.Model(self.network.inputs, feature)
    except (AttributeError, TypeError, ValueError) as e:
      raise checks.ExportError(
        f'The feature of the prototypes, at the layer {layer.name!r}, is inside'
        ' of a nested model or used more than once, and cannot be cut out.'
        ' Build the network of layers only.'
      ) from e
    if len(feature.shape) == 2:
      return features
    return tf.keras.Sequential([features, tf.keras.layers.Flatten()])


register(personalizations.NoPersonalization, _Network)
register(personalizations.Maml, _GradientDescent)
register(personalizations.Proto, _NearestPrototype)


def _assign(network: tf.keras.Model, weights: models.ModelWeights) -> None:
  # In the order of Keras' own `weights`, trainable and other ones mix.
  variables = network.trainable_variables + network.non_trainable_variables
  values = (*weights.trainable, *weights.non_trainable)
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)


def _ends_in_softmax(network: tf.keras.Model) -> bool:
  layer = models.leaves(network)[-1]
  return isinstance(layer, tf.keras.layers.Softmax) or (
    getattr(layer, 'activation', None) is tf.keras.activations.softmax
  )
