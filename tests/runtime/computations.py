"""Small computations for the tests of the runtime."""

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def total(x):
  return tff.federated_sum(x)


@tff.tensorflow.computation(np.int32)
def add_one(x):
  return x + 1


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def of_each(x):
  return tff.federated_map(add_one, x), tff.federated_sum(x)


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def total_times_number(x):
  everywhere = tff.federated_broadcast(tff.federated_sum(x))
  return tff.federated_sum(everywhere)


@tff.tensorflow.computation(np.str_, np.str_)
def meet(own, other):
  """Writes its own file and waits 20 seconds for the other; 1 if it came."""

  def has_come():
    return tf.size(tf.io.matching_files(other)) > 0

  end = tf.timestamp() + 20
  with tf.control_dependencies([tf.io.write_file(own, ''), end]):
    seconds_left = tf.while_loop(
      lambda left: ~has_come() & (left > 0),
      lambda left: [end - tf.timestamp()],
      [tf.constant(20.0, tf.float64)],
    )[0]
  return tf.cast(seconds_left > 0, tf.int32)


@tff.federated_computation(
  tff.FederatedType((np.str_, np.str_), tff.CLIENTS),
)
def number_that_met(files):
  return tff.federated_sum(tff.federated_map(meet, files))


@tff.tensorflow.computation(np.str_)
def hang_once(marker):
  """Without a marker file, writes it and never ends."""
  is_first = tf.equal(tf.size(tf.io.matching_files(marker)), 0)
  with tf.control_dependencies([is_first]):
    write = tf.io.write_file(marker, '')
  with tf.control_dependencies([write]):
    return tf.while_loop(lambda _: is_first, lambda i: [i + 1], [7])[0]
