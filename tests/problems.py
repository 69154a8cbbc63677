"""Small problems, and the mathematics once more, for the tests."""

import collections
import contextlib
import os
import signal

import numpy as np
import tensorflow as tf

from tff_debias import models

CLASSIFIER_LOSS = tf.keras.losses.SparseCategoricalCrossentropy(True)
LINEAR_SPEC = (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 1]))


def linear_model(num_inputs=3, initial=None, metrics=None):
  """y = x · w, without a bias, with the squared error."""
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((num_inputs,)),
      tf.keras.layers.Dense(1, use_bias=False, kernel_initializer='zeros'),
    ]
  )
  if initial is not None:
    keras_model.set_weights([np.reshape(initial, (num_inputs, 1))])
  spec = (tf.TensorSpec([None, num_inputs]), tf.TensorSpec([None, 1]))
  return models.from_keras(
    keras_model, tf.keras.losses.MeanSquaredError(), spec, metrics
  )


def linear_data(num_clients, num_examples=8, num_inputs=3, seed=0):
  """Devices with their own inputs and their own truth: `x, y` of each."""
  random = np.random.RandomState(seed)
  devices = []
  for _ in range(num_clients):
    x = random.normal(size=(num_examples, num_inputs)).astype(np.float32)
    truth = random.normal(size=(num_inputs, 1)) + 1
    devices.append((x, (x @ truth).astype(np.float32)))
  return devices


def client(client_id, x, y, num_batches, batch_size=None):
  """A participant; by default every batch is all of its data."""
  data = tf.data.Dataset.from_tensor_slices((x, y))
  data = data.repeat().batch(batch_size or len(x)).take(num_batches)
  return collections.OrderedDict(client_id=client_id, data=data)


def snapshot(folder):
  """All files under a folder with their contents, and all folders."""
  found = {}
  for root, folders, files in os.walk(folder):
    for name in folders:
      found[os.path.relpath(os.path.join(root, name), folder)] = None
    for name in files:
      path = os.path.join(root, name)
      with open(path, 'rb') as file:
        found[os.path.relpath(path, folder)] = file.read()
  return found


def end_session(process):
  """Ends a process of a session of its own, and all that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()
