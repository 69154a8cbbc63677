"""Counts the models and bytes that a learning process sends."""

import collections
import math
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

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
  num_bytes: int | tf.Tensor,
) -> Total:
  """Adds one round to the total of one direction.

  Args:
    total: The total so far.
    num_clients: The number of clients that received or sent.
    model: Tensors of the shapes of one model.
    sent_models: Tensors of the shapes of all models that one client receives or
      sends.
    num_bytes: The size of all that one client receives or sends.

  Returns:
    The new total.
  """
  models = _num_elements(sent_models) / _num_elements(model)
  return collections.OrderedDict(
    models=total['models'] + tf.cast(num_clients, tf.float64) * models,
    bytes=total['bytes'] + tf.cast(num_clients, tf.int64) * num_bytes,
  )


def tensor_bytes(tensors: Any) -> tf.Tensor:
  """The size of tensors, before any compression, an int64 scalar."""
  return sum(
    tf.size(tensor, tf.int64) * tensor.dtype.size
    for tensor in tf.nest.flatten(tensors)
  )


def type_bytes(value_type: tff.Type) -> int:
  """The size of a value of a type of static shapes, before any compression."""
  tensors = []
  tff.types.structure_from_tensor_type_tree(tensors.append, value_type)
  return sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors)


def _num_elements(tensors: Any) -> int:
  return sum(math.prod(t.shape) for t in tf.nest.flatten(tensors))
