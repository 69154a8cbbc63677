"""Small computations for the tests of the runtime."""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff


def clients(type_spec):
  return tff.FederatedType(type_spec, tff.CLIENTS)


def server(type_spec):
  return tff.FederatedType(type_spec, tff.SERVER)


@tff.federated_computation(clients(np.int32))
def total(x):
  return tff.federated_sum(x)


@tff.tensorflow.computation(np.float32, np.float32)
def subtract(a, b):
  return a - b


@tff.tensorflow.computation(np.str_, np.str_)
def meet(own, other):
  """Writes its own file and waits 2 seconds for the other; 1 if it came."""

  def has_come():
    return tf.size(tf.io.matching_files(other)) > 0

  end = tf.timestamp() + 2
  with tf.control_dependencies([tf.io.write_file(own, ''), end]):
    seconds_left = tf.while_loop(
      lambda left: ~has_come() & (left > 0),
      lambda left: [end - tf.timestamp()],
      [tf.constant(2.0, tf.float64)],
    )[0]
  return tf.cast(seconds_left > 0, tf.int32)


@tff.federated_computation(clients((np.str_, np.str_)))
def number_that_met(files):
  return tff.federated_sum(tff.federated_map(meet, files))


@tff.tensorflow.computation(np.int32, np.float32)
def _add(a, b):
  return a + 1, b * 2


@tff.tensorflow.computation
def _without_argument():
  return collections.OrderedDict(a=tf.constant('text'), b=tf.constant([1.5]))


@tff.tensorflow.computation(tff.SequenceType(np.int32))
def _sum_sequence(data):
  return data.reduce(0, lambda a, b: a + b)


@tff.federated_computation(server(np.int32))
def _at_server(x):
  return tff.federated_map(tff.tensorflow.computation(lambda v: v * 2), x), x


@tff.federated_computation(np.int32)
def _nested(x):
  return _add(x, 1.0), x


@tff.federated_computation(clients(np.float32), clients(np.float32))
def _weighted_mean(x, weight):
  return tff.federated_mean(x, weight), tff.federated_sum(x)


@tff.federated_computation(
  clients(np.float32), server(np.float32), clients(np.int32)
)
def _mixed(x, s, n):
  result = collections.OrderedDict(a=tff.federated_mean(x))
  return s, tff.federated_sum(n), result


@tff.federated_computation(clients(tff.TensorType(np.float32, [None])))
def _sizes(x):
  size = tff.tensorflow.computation(lambda v: tf.size(v))
  return tff.federated_sum(tff.federated_map(size, x))


@tff.federated_computation(server(np.float32), clients(np.float32))
def _of_each(s, x):
  return tff.federated_map(subtract, (tff.federated_broadcast(s), x))


@tff.federated_computation(clients(np.str_))
def _lengths(x):
  length = tff.tensorflow.computation(lambda v: tf.strings.length(v))
  return tff.federated_sum(tff.federated_map(length, x))


@tff.federated_computation(clients(tff.TensorType(np.float32, [4])))
def _norms(x):
  double = tff.tensorflow.computation(lambda v: v * 2)
  # It colocates operations with its argument.
  norm = tff.tensorflow.computation(lambda v: tf.linalg.global_norm([v]))
  return tff.federated_mean(
    tff.federated_map(norm, tff.federated_map(double, x))
  )


_x = np.arange(4, dtype=np.float32)
#: Calls of every kind of computation that runs in this process.
CALLS = {
  'tensors': lambda: _add(3, 2.0),
  'no argument': _without_argument,
  'a list for a data set': lambda: _sum_sequence([1, 2, 3]),
  'a data set': lambda: _sum_sequence(
    tf.data.Dataset.from_tensor_slices(np.arange(4, dtype=np.int32))
  ),
  'at the server': lambda: _at_server(4),
  'nested': lambda: _nested(5),
  'at the clients': lambda: total([1, 2, 3]),
  'no clients': lambda: total([]),
  'two arguments at the clients': lambda: _weighted_mean([*_x], [*(_x + 1)]),
  'both placements': lambda: _mixed([*_x], 7.0, [1, 2, 3, 4]),
  'unknown shapes': lambda: _sizes([_x, _x[:2]]),
  'a result of each client': lambda: _of_each(1.0, [*_x]),
  'colocated operations': lambda: _norms([_x, _x + 1]),
  'texts': lambda: _lengths(['a', 'bcd']),
}
