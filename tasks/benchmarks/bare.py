"""The same work as plain TensorFlow loops: the floor, without TFF and Keras.

One device after the other in one process, the network written out, and neither
a state nor a metric besides.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import tensorflow as tf

import tff_debias

Weights = Sequence[tf.Tensor]
#: From weights and inputs to the features, `[b, features]`, and the logits.
Forward = Callable[[Weights, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

_LEARNING_RATE, _WEIGHT_DECAY, _MAX_NORM = 0.1, 1e-3, 10.0


def cnn(weights: Weights, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """`tasks.catalog.networks.cnn` for pixels from 0 to 255."""
  x = tf.cast(x, tf.float32) / 255
  for kernel, bias in (weights[:2], weights[2:4]):
    x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, 'VALID') + bias)
    x = tf.nn.max_pool2d(x, 2, 2, 'VALID')
  return mlp(weights[4:], x)


def mlp(weights: Weights, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """`tasks.catalog.networks.mlp`."""
  x = tf.reshape(x, [-1, weights[0].shape[0]])
  for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
    x = tf.nn.relu(x @ kernel + bias)
  return x, x @ weights[-2] + weights[-1]


def build_training(
  forward: Forward, personalization: tff_debias.Personalization
) -> Callable[[Weights, tf.data.Dataset], Weights]:
  """The local work of a device, without a correction: its new weights."""

  def query_loss(weights: Weights, support: Any, query: Any) -> tf.Tensor:
    if isinstance(personalization, tff_debias.Proto):
      logits, present = _proto_logits(forward, weights, support, query)
      # A class without a prototype does not count.
      counts = tf.cast(tf.gather(present, query['y']), tf.float32)
      return tf.reduce_sum(counts * _losses(query, logits)) / tf.reduce_sum(
        counts
      )
    if isinstance(personalization, tff_debias.Maml):
      loss = functools.partial(_loss, forward, batch=support)
      for _ in range(personalization.num_steps):
        rate = personalization.learning_rate
        weights = _descend(loss, weights, rate, _WEIGHT_DECAY, None)
    return _loss(forward, weights, query)

  @tf.function
  def train(start: Weights, dataset: tf.data.Dataset) -> Weights:
    weights, size = tuple(start), personalization.batches_per_step
    for batches in dataset.batch(size):
      support, query = (
        tf.nest.map_structure(lambda t, i=i: t[i], batches)
        for i in (0, size - 1)
      )
      loss = functools.partial(query_loss, support=support, query=query)
      weights = _descend(
        loss, weights, _LEARNING_RATE, _WEIGHT_DECAY, _MAX_NORM
      )
    return weights

  return train


def build_test(
  forward: Forward, personalization: tff_debias.Personalization
) -> Callable[[Weights, Any, Any], tf.Tensor]:
  """The accuracy of a device as a function of weights and two large batches."""

  @tf.function
  def test(weights: Weights, train: Any, test: Any) -> tf.Tensor:
    if isinstance(personalization, tff_debias.Proto):
      logits, _ = _proto_logits(forward, weights, train, test)
    else:
      loss = functools.partial(_loss, forward, batch=train)
      for _ in range(personalization.num_steps):
        rate = personalization.learning_rate
        weights = _descend(loss, weights, rate, 0.0, _MAX_NORM)
      _, logits = forward(weights, test['x'])
    right = tf.equal(tf.argmax(logits, -1, tf.int32), test['y'])
    return tf.reduce_mean(tf.cast(right, tf.float32))

  return test


def _descend(
  loss: Callable[[Weights], tf.Tensor],
  weights: Weights,
  rate: float,
  weight_decay: float,
  max_norm: float | None,
) -> Weights:
  """A step of gradient descent."""
  with tf.GradientTape() as tape:
    tape.watch(weights)
    value = loss(weights)
  gradient = tape.gradient(value, weights, unconnected_gradients='zero')
  if max_norm is not None:
    gradient, _ = tf.clip_by_global_norm(gradient, max_norm)
  return tuple(
    w - rate * (g + weight_decay * w)
    for w, g in zip(weights, gradient, strict=True)
  )


def _losses(batch: Any, logits: tf.Tensor) -> tf.Tensor:
  return tf.nn.sparse_softmax_cross_entropy_with_logits(batch['y'], logits)


def _loss(forward: Forward, weights: Weights, batch: Any) -> tf.Tensor:
  return tf.reduce_mean(_losses(batch, forward(weights, batch['x'])[1]))


def _proto_logits(
  forward: Forward, weights: Weights, support: Any, query: Any
) -> tuple[tf.Tensor, tf.Tensor]:
  """The logits of the query, and which classes have a prototype."""
  members = tf.one_hot(support['y'], weights[-1].shape[0])
  counts = tf.reduce_sum(members, axis=0)
  sums = tf.matmul(members, forward(weights, support['x'])[0], transpose_a=True)
  prototypes = sums / tf.maximum(counts, 1.0)[:, tf.newaxis]
  features = forward(weights, query['x'])[0]
  distances = tf.reduce_sum(
    (features[:, tf.newaxis] - prototypes) ** 2, axis=-1
  )
  return tf.where(counts > 0, -distances, -1e9), counts > 0
