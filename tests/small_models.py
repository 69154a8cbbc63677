"""Models, data and processes that are small, for the tests."""

import collections
import math
import os

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import learning_process
from tff_debias import models
from tff_debias import personalizations
from tff_debias import storage as storage_lib

CLASSIFIER_LOSS = tf.keras.losses.SparseCategoricalCrossentropy(True)
CLASSIFIER_SPEC = (tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int32))
LINEAR_SPEC = (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 1]))


class FreeMaml(personalizations.Maml):
  """MAML whose gradients are not clipped, unless the caller bounds them."""

  default_max_grad_norm = math.inf


def network(seed=0, **options):
  """A `Model` and its weights: 3 → 4, tanh, the feature → 3 logits."""
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((3,)),
      tf.keras.layers.Dense(4, 'tanh'),
      tf.keras.layers.Dense(3),
    ]
  )
  random = np.random.RandomState(seed)
  weights = [
    random.normal(size=w.shape).astype(np.float32)
    for w in keras_model.get_weights()
  ]
  keras_model.set_weights(weights)
  model = models.from_keras(
    keras_model, CLASSIFIER_LOSS, CLASSIFIER_SPEC, **options
  )
  return model, weights


def batch(num_examples, labels=None, seed=0):
  """A batch for `network`, with random labels if none are given."""
  random = np.random.RandomState(seed)
  x = random.normal(size=(num_examples, 3)).astype(np.float32)
  if labels is None:
    labels = random.randint(3, size=num_examples)
  return x, np.asarray(labels, np.int32)


def dataset(batches):
  """A data set of just these batches, which may be of different sizes."""
  shapes = [[None, *np.shape(part)[1:]] for part in batches[0]]
  return tf.data.Dataset.from_generator(
    lambda: iter(batches),
    output_signature=tuple(
      tf.TensorSpec(shape, part.dtype)
      for shape, part in zip(shapes, batches[0], strict=True)
    ),
  )


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
  """Clients with their own inputs and their own truth: `x, y` of each."""
  random = np.random.RandomState(seed)
  clients = []
  for _ in range(num_clients):
    x = random.normal(size=(num_examples, num_inputs)).astype(np.float32)
    truth = random.normal(size=(num_inputs, 1)) + 1
    clients.append((x, (x @ truth).astype(np.float32)))
  return clients


def linear_client_data(ids):
  """The same as a `ClientData`, which is read inside of a graph."""
  x, y = (np.stack(part) for part in zip(*linear_data(len(ids)), strict=True))

  def read(client_id):
    place = tf.where(tf.equal(ids, client_id))[0, 0]
    return tf.data.Dataset.from_tensor_slices(
      (tf.gather(x, place), tf.gather(y, place))
    )

  return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(ids, read)


def client(client_id, x, y, num_batches, batch_size=None):
  """A participant; by default every batch is all of its data."""
  data = tf.data.Dataset.from_tensor_slices((x, y))
  data = data.repeat().batch(batch_size or len(x)).take(num_batches)
  return collections.OrderedDict(client_id=client_id, data=data)


def participants(process, clients):
  """The `client_data` of a process: without ids where no client has a state."""
  client_data = process.next.type_signature.parameter.client_data
  if isinstance(client_data.member, tff.SequenceType):
    return [client['data'] for client in clients]
  return list(clients)


def batches(participant):
  """The batches of a participant, as the plain loop takes them."""
  return list(participant['data'].as_numpy_iterator())


#: The data of the clients of `linear_client`, and data that is not finite.
DATA = linear_data(5)
NAN = (DATA[0][0] * np.nan, DATA[0][1])


def linear_client(i, num_batches=3, data=None, batch_size=None):
  """The client i of `linear_process`."""
  return client(f'client {i}', *(data or DATA[i]), num_batches, batch_size)


def linear_process(correction, folder=None, personalization=None, **options):
  """A process on the linear model, of five clients if it has a folder."""
  if folder is not None:
    options.setdefault('storage', storage_lib.ClientStorage(folder))
    options.setdefault('num_clients', 5)
  return learning_process.build_learning_process(
    options.pop('model', None) or linear_model(),
    personalization or personalizations.NoPersonalization(),
    correction,
    **options,
  )


def selected(process, state):
  """The one weight of the model *selected*."""
  return process.get_model_weights(state).trainable[0]


def assert_same(structure, other):
  """All numbers are the same."""
  pairs = zip(tf.nest.flatten(structure), tf.nest.flatten(other), strict=True)
  for value, expected in pairs:
    np.testing.assert_array_equal(value, expected)


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
