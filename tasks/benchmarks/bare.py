"""The same work as plain TensorFlow loops: the floor, without TFF and Keras.

One device after the other in one process, the network written out, and nothing
kept or measured besides.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Weights = Sequence[tf.Tensor]
#: Weights and inputs to the feature, `[b, features]`, and the logits.
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
  forward: Forward, personalization: str, maml_steps: int, maml_rate: float
) -> Callable[[Sequence[tf.Tensor], tf.data.Dataset], Sequence[tf.Tensor]]:
  """The local work of a device without a correction.

  Args:
    forward: The network.
    personalization: none, maml or proto.
    maml_steps: s.
    maml_rate: a.

  Returns:
    A function of the weights and the batches that gives the new weights.
  """

  def query_loss(weights: Weights, support: Any, query: Any) -> tf.Tensor:
    if personalization == 'none':
      return _loss(forward, weights, support)
    if personalization == 'proto':
      prototypes, present = _prototypes(forward, weights, support)
      logits = _proto_logits(forward, weights, query, prototypes, present)
      # A class without a prototype does not count.
      counts = tf.cast(tf.gather(present, query['y']), tf.float32)
      losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        query['y'], logits
      )
      return tf.reduce_sum(counts * losses) / tf.reduce_sum(counts)
    for _ in range(maml_steps):
      with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = _loss(forward, weights, support)
      gradient = tape.gradient(loss, weights)
      weights = [
        w - maml_rate * (g + _WEIGHT_DECAY * w)
        for w, g in zip(weights, gradient, strict=True)
      ]
    return _loss(forward, weights, query)

  @tf.function
  def train(start: Weights, dataset: tf.data.Dataset) -> Weights:
    weights = tuple(start)
    if personalization != 'none':
      dataset = dataset.batch(2)
    for batches in dataset:
      support = query = batches
      if personalization != 'none':
        support, query = (
          tf.nest.map_structure(lambda t, i=i: t[i], batches) for i in range(2)
        )
      with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = query_loss(weights, support, query)
      gradient = tape.gradient(loss, weights, unconnected_gradients='zero')
      gradient, _ = tf.clip_by_global_norm(gradient, _MAX_NORM)
      weights = tuple(
        w - _LEARNING_RATE * (g + _WEIGHT_DECAY * w)
        for w, g in zip(weights, gradient, strict=True)
      )
    return weights

  return train


def build_test(
  forward: Forward, personalization: str, maml_steps: int, maml_rate: float
) -> Callable[[Weights, Any, Any], tf.Tensor]:
  """The personalized test of a device.

  Args:
    forward: The network.
    personalization: maml or proto.
    maml_steps: s.
    maml_rate: a.

  Returns:
    A function of the weights and all training and test examples, in a batch
    each, that gives the accuracy.
  """

  @tf.function
  def test(weights: Weights, train: Any, test: Any) -> tf.Tensor:
    if personalization == 'proto':
      prototypes, present = _prototypes(forward, weights, train)
      logits = _proto_logits(forward, weights, test, prototypes, present)
    else:
      for _ in range(maml_steps):
        with tf.GradientTape() as tape:
          tape.watch(weights)
          loss = _loss(forward, weights, train)
        gradient = tape.gradient(loss, weights)
        gradient, _ = tf.clip_by_global_norm(gradient, _MAX_NORM)
        weights = [
          w - maml_rate * g for w, g in zip(weights, gradient, strict=True)
        ]
      logits = forward(weights, test['x'])[1]
    right = tf.equal(tf.argmax(logits, -1, tf.int32), test['y'])
    return tf.reduce_mean(tf.cast(right, tf.float32))

  return test


def _cross_entropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
  return tf.reduce_mean(
    tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
  )


def _loss(forward: Forward, weights: Weights, batch: Any) -> tf.Tensor:
  return _cross_entropy(batch['y'], forward(weights, batch['x'])[1])


def _prototypes(
  forward: Forward, weights: Weights, batch: Any
) -> tuple[tf.Tensor, tf.Tensor]:
  members = tf.one_hot(batch['y'], weights[-1].shape[0])
  counts = tf.reduce_sum(members, axis=0)
  sums = tf.matmul(members, forward(weights, batch['x'])[0], transpose_a=True)
  return sums / tf.maximum(counts, 1.0)[:, tf.newaxis], counts > 0


def _proto_logits(
  forward: Forward,
  weights: Weights,
  batch: Any,
  prototypes: tf.Tensor,
  present: tf.Tensor,
) -> tf.Tensor:
  features = forward(weights, batch['x'])[0]
  distances = tf.reduce_sum(
    (features[:, tf.newaxis] - prototypes) ** 2, axis=-1
  )
  return tf.where(present, -distances, -1e9)
