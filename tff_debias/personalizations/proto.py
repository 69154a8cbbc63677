"""Proto: the device classifies by the nearest mean feature of its classes."""

import dataclasses
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tff_debias import checks
from tff_debias import loops
from tff_debias import models
from tff_debias.personalizations import base


class Prototypes(NamedTuple):
  """The prototypes of a device, and the model that gives the features.

  Attributes:
    weights: The model's weights.
    centers: The mean features p_c, `[classes, feature size]`.
    known: Which classes the device has, a bool tensor `[classes]`.
  """

  weights: models.ModelWeights
  centers: tf.Tensor
  known: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Proto(base.Personalization):
  """logit_c(x) = -‖feature(x) - p_c‖², p_c the mean feature of class c in A.

  The loss is the cross-entropy over B. A query example whose class A lacks has
  no prototype and does not count. In the personalized test, A is all of the
  device's training data: there such an example is wrong, as every metric sees
  it, and only the loss leaves it out.

  Attributes:
    num_classes: The number of classes; by default the width of the model's
      predictions.
  """

  num_classes: int | None = None

  def __post_init__(self):
    if self.num_classes is not None:
      checks.check_integer('num_classes of Proto', self.num_classes, 2)

  def check_model(self, model):
    """See base class."""
    label_spec = models.split_batch(model.input_spec)[1]
    is_integer = isinstance(label_spec, tf.TensorSpec) and (
      label_spec.dtype.is_integer and label_spec.shape.rank == 1
    )
    if not is_integer:
      raise ValueError(
        'Prototypes need one integer label for each example,'
        f' tf.TensorSpec([None], tf.int32), but input_spec has {label_spec}.'
        ' Of labels [None, 1], a data set gives y[:, 0].'
      )
    if model.output_spec.feature is None:
      raise ValueError(
        'Prototypes need a feature, and the model has none: give from_keras'
        ' its feature_layer, or from_functional a feature_fn.'
      )
    if None in model.output_spec.feature.shape[1:]:
      raise ValueError(
        'Prototypes need a feature of fixed size, but its shape is'
        f' {model.output_spec.feature.shape}.'
      )
    self._classes(model)
    if not _is_trained(model):
      raise ValueError(
        'Prototypes need a feature that training changes, but no trainable'
        ' weight reaches this one: it is raw input, or all layers before it are'
        ' frozen. Give from_keras, as feature_layer, the name of a layer with'
        ' trainable weights at or before it, or from_functional another'
        ' feature_fn.'
      )

  def meta_loss(self, model, weights, batches, weight_decay):
    """See base class."""
    del weight_decay
    support, query = batches
    zeros = self._empty_sums(model)
    sums = self._add_batch(model, weights, zeros, support, training=True)
    prototypes = _prototypes(weights, *sums)
    return _nearest(model, prototypes, query, training=True)

  def personalize(self, model, weights, dataset, max_grad_norm):
    """See base class: the prototypes of all of the training data."""
    del max_grad_norm
    sums = loops.reduce_batches(
      dataset,
      self._empty_sums(model),
      lambda sums, batch: self._add_batch(
        model, weights, sums, batch, training=False
      ),
    )
    return _prototypes(weights, *sums)

  def evaluate(self, model, personalized, batch):
    """See base class."""
    return _nearest(model, personalized, batch, training=False)

  def _classes(self, model: models.Model) -> int:
    if self.num_classes is not None:
      return self.num_classes
    predictions = model.output_spec.predictions
    width = getattr(predictions, 'shape', [None])[-1]
    if width is None or width < 2:
      raise ValueError(
        'Prototypes need two classes at least, and their number cannot be read'
        f' off the predictions {predictions} (is there one logit for both'
        ' classes?): give Proto its num_classes, such as num_classes=2.'
      )
    return width

  def _empty_sums(self, model: models.Model) -> tuple[tf.Tensor, tf.Tensor]:
    classes = self._classes(model)
    feature: Any = model.output_spec.feature
    size = feature.shape[1:].num_elements()
    return tf.zeros([classes, size]), tf.zeros([classes])

  def _add_batch(self, model, weights, sums, batch, training):
    """Adds the features and the number of examples of each class."""
    x, labels = models.split_batch(batch)
    # Unlike tf.one_hot, this makes an error of a label out of range.
    members = tf.gather(tf.eye(self._classes(model)), tf.cast(labels, tf.int64))
    features, _ = _features(model, weights, x, training)
    return (
      sums[0] + tf.matmul(members, features, transpose_a=True),
      sums[1] + tf.reduce_sum(members, axis=0),
    )


def _is_trained(model: models.Model) -> bool:
  """Whether the feature depends on a trainable weight."""
  gradients = []

  def find_gradients(weights, x):
    feature = model.apply(weights, x, True).feature
    gradients.extend(tf.gradients(feature, list(weights.trainable)))

  x_spec, _ = models.split_batch(model.input_spec)
  models.trace(find_gradients, models.specs_of(model.initial_weights), x_spec)
  return any(gradient is not None for gradient in gradients)


def _features(model, weights, x, training) -> tuple[tf.Tensor, tf.Tensor]:
  """The features, flat, and the model's regularization."""
  size = model.output_spec.feature.shape[1:].num_elements()
  outputs = model.apply(weights, x, training)
  return tf.reshape(outputs.feature, [-1, size]), outputs.regularization


def _prototypes(
  weights: models.ModelWeights, feature_sums: tf.Tensor, counts: tf.Tensor
) -> Prototypes:
  centers = tf.math.divide_no_nan(feature_sums, counts[:, tf.newaxis])
  return Prototypes(weights, centers, counts > 0)


def _nearest(model, prototypes, batch, training) -> base.Result:
  """The cross-entropy of the distances, over examples with a prototype."""
  x, labels = models.split_batch(batch)
  features, regularization = _features(model, prototypes.weights, x, training)
  offsets = features[:, tf.newaxis] - prototypes.centers
  distances = tf.reduce_sum(tf.square(offsets), axis=-1)
  # Finite, so that a metric of several examples without a prototype is, too.
  logits = tf.where(prototypes.known, -distances, -1e30)
  classes = tf.cast(labels, tf.int64)
  losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
  has_prototype = tf.gather(prototypes.known, classes)
  losses = tf.boolean_mask(losses, has_prototype)
  loss = tf.math.divide_no_nan(
    tf.reduce_sum(losses), tf.cast(tf.size(losses), losses.dtype)
  )
  if not training:
    return base.Result(
      loss, labels, logits, tf.cast(tf.size(losses), tf.float32)
    )
  return base.Result(
    loss + regularization,
    tf.boolean_mask(labels, has_prototype),
    tf.boolean_mask(logits, has_prototype),
  )
