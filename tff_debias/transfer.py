"""Counts the models and bytes that a learning process sends."""

import collections
import math
from typing import Any

import tensorflow as tf

#: The totals of one direction: `models`, float64, and `bytes`, int64.
Total = collections.OrderedDict[str, tf.Tensor]


def no_transfer() -> Total:
  """The total before the first round."""
  return collections.OrderedDict(
    models=tf.constant(0.0, tf.float64), bytes=tf.constant(0, tf.int64)
  )


def add_round(
  total: Total,
  num_clients: tf.Tensor,
  model: Any,
  sent_models: Any,
  sent: Any,
) -> Total:
  """Adds one round to the total of one direction.

  Only the shapes of the tensors are used. Bytes are counted before any
  compression.

  Args:
    total: The total so far.
    num_clients: The number of clients that received or sent.
    model: A structure like one model.
    sent_models: A structure like all models that one client receives or sends.
    sent: A structure like all that one client receives or sends.

  Returns:
    The new total.
  """
  models = _num_elements(sent_models) / _num_elements(model)
  num_bytes = sum(
    tf.size(tensor, tf.int64) * tensor.dtype.size
    for tensor in tf.nest.flatten(sent)
  )
  return collections.OrderedDict(
    models=total['models'] + tf.cast(num_clients, tf.float64) * models,
    bytes=total['bytes'] + tf.cast(num_clients, tf.int64) * num_bytes,
  )


def _num_elements(structure: Any) -> int:
  return sum(math.prod(t.shape) for t in tf.nest.flatten(structure))
