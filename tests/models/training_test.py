"""Every family of layers is trained in a worker, as Keras would train it."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import networks
import tff_debias
from tff_debias import models

layers = tf.keras.layers
dense = networks.dense
sequential = networks.sequential
VECTOR = networks.VECTOR
SERIES = tf.TensorSpec([None, 4, 3])
LABELS = tf.TensorSpec([None], tf.int32)
LOSS = tf.keras.losses.SparseCategoricalCrossentropy(True)
RATE = 0.2
MAML = tff_debias.Maml(num_steps=1, learning_rate=0.3)

pytestmark = pytest.mark.usefixtures('runtime')


def series(*stack):
  return sequential(*stack, dense(2), shape=(4, 3))


def attention(**options):
  x = layers.Input((4, 3))
  attended = layers.MultiHeadAttention(2, 2, **options)(x, x)
  return tf.keras.Model(x, dense(2)(layers.Flatten()(attended)))


def two_inputs():
  a, b = layers.Input((3,), name='a'), layers.Input((2,), name='b')
  hidden = dense(4, activation='tanh')(layers.concatenate([b, a]))
  return tf.keras.Model({'a': a, 'b': b}, dense(2)(hidden))


def two_outputs():
  x = layers.Input((3,))
  hidden = dense(4, activation='tanh')(x)
  return tf.keras.Model(
    x, {'class': dense(2)(hidden), 'size': dense(1)(hidden)}
  )


def two_losses(labels, outputs):
  return LOSS(labels, outputs['class']) + tf.reduce_mean(outputs['size'] ** 2)


def builder_of(build):
  """A function that always builds the same network."""

  def build_the_same():
    tf.keras.utils.set_random_seed(1)
    return build()

  return build_the_same


def frozen():
  return sequential(
    dense(3, activation='tanh', trainable=False), dense(3), dense(2)
  )


FAMILIES = {
  'LSTM': (lambda: series(layers.LSTM(2)), SERIES),
  'GRU': (lambda: series(layers.GRU(2)), SERIES),
  'Embedding': (
    lambda: sequential(
      layers.Embedding(5, 3, mask_zero=True),
      layers.SimpleRNN(3),
      dense(2),
      shape=(4,),
      dtype=tf.int32,
    ),
    networks.TOKENS,
  ),
  'MultiHeadAttention': (attention, SERIES),
  'GroupNormalization': (networks.convolutional, networks.IMAGE),
  'Conv1D': (
    lambda: series(layers.Conv1D(2, 3, activation='tanh'), layers.Flatten()),
    SERIES,
  ),
  'inputs': (two_inputs, {'a': VECTOR, 'b': networks.Y}),
  'outputs': (two_outputs, VECTOR),
  'operations': (networks.operations, VECTOR),
  'nested': (networks.nested, VECTOR),
  'shared': (networks.shared, VECTOR),
  'frozen': (frozen, VECTOR),
  'adapted': (networks.normalizing, VECTOR),
}
RANDOM = {
  'Dropout': lambda: series(layers.Flatten(), layers.Dropout(0.5), dense(3)),
  'GaussianNoise': lambda: series(
    layers.Flatten(), dense(3), layers.GaussianNoise(1.0)
  ),
  'LSTM': lambda: series(layers.LSTM(3, dropout=0.5, recurrent_dropout=0.5)),
  'GRU': lambda: series(layers.GRU(3, dropout=0.5)),
  'SimpleRNN': lambda: series(layers.SimpleRNN(3, recurrent_dropout=0.5)),
  'MultiHeadAttention': lambda: attention(dropout=0.5),
}


def make_batches(x_spec, num_batches=2):
  """Batches `(x, y)` of four examples."""
  y = np.array([0, 1, 1, 0], np.int32)
  batches = []
  for i in range(num_batches):
    make_inputs = functools.partial(networks.inputs, seed=i)
    batches.append((tf.nest.map_structure(make_inputs, x_spec), y))
  return batches


def dataset(batches):
  parts = [tf.data.Dataset.from_tensors(batch) for batch in batches]
  return parts[0].concatenate(parts[1]) if parts[1:] else parts[0]


def train(model, personalization, batches):
  """The weights and the loss after one round of one client."""
  process = tff_debias.build_learning_process(
    model,
    personalization,
    tff_debias.NoCorrection(),
    learning_rate=RATE,
    max_grad_norm=math.inf,
  )
  client = dataset(batches)
  result = process.next(process.initialize(), [client])
  loss = result.metrics['client_work']['train']['loss']
  return process.get_model_weights(result.state), loss


def gradient(keras_model, loss, batch):
  with tf.GradientTape() as tape:
    value = loss(batch[1], keras_model(batch[0], training=True))
  return [
    tf.convert_to_tensor(g)
    for g in tape.gradient(
      value, keras_model.trainable_variables, unconnected_gradients='zero'
    )
  ]


def descend(keras_model, step, rate):
  for variable, direction in zip(
    keras_model.trainable_variables, step, strict=True
  ):
    variable.assign_sub(rate * direction)


def maml_gradient(keras_model, loss, batches):
  """(I - a H) g for g, the gradient at the adapted weights, of the query."""
  support, query = batches
  variables = keras_model.trainable_variables
  start = [tf.identity(v) for v in variables]
  descend(keras_model, gradient(keras_model, loss, support), MAML.learning_rate)
  outer = gradient(keras_model, loss, query)
  for variable, value in zip(variables, start, strict=True):
    variable.assign(value)
  with tf.GradientTape() as tape:
    inner = gradient(keras_model, loss, support)
    slope = tf.add_n(
      [tf.reduce_sum(i * o) for i, o in zip(inner, outer, strict=True)]
    )
  products = tape.gradient(slope, variables, unconnected_gradients='zero')
  return [
    o - MAML.learning_rate * tf.convert_to_tensor(p)
    for o, p in zip(outer, products, strict=True)
  ]


def assert_weights(weights, keras_model):
  for group in ('trainable', 'non_trainable'):
    expected = getattr(keras_model, f'{group}_variables')
    for value, e in zip(getattr(weights, group), expected, strict=True):
      np.testing.assert_allclose(value, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'family, is_built',
  [(family, False) for family in FAMILIES]
  + [('operations', True), ('shared', True), ('inputs', True)],
)
def test_a_family_of_layers(family, is_built):
  build, x_spec = FAMILIES[family]
  build = builder_of(build)
  keras_model = build()
  loss = two_losses if family == 'outputs' else LOSS
  model = models.from_keras(
    build if is_built else keras_model, loss, (x_spec, LABELS)
  )
  batches = make_batches(x_spec)
  start = keras_model.get_weights()
  weights, _ = train(model, tff_debias.NoPersonalization(), batches)
  for batch in batches:
    descend(keras_model, gradient(keras_model, loss, batch), RATE)
  assert_weights(weights, keras_model)
  assert any(
    np.abs(s - e).max() > 1e-3
    for s, e in zip(start, keras_model.get_weights(), strict=True)
  )
  keras_model.set_weights(start)
  weights, _ = train(model, MAML, batches)
  descend(keras_model, maml_gradient(keras_model, loss, batches), RATE)
  assert_weights(weights, keras_model)


@pytest.mark.slow
@pytest.mark.parametrize('family', RANDOM)
def test_a_family_of_random_layers(family):
  tf.keras.utils.set_random_seed(1)
  keras_model = RANDOM[family]()
  model = models.from_keras(keras_model, LOSS, (SERIES, LABELS))
  batches = make_batches(SERIES)
  for personalization in (
    tff_debias.NoPersonalization(),
    MAML,
    tff_debias.Proto(),
  ):
    weights, loss = train(model, personalization, batches)
    assert np.isfinite(loss)
    steps = [
      np.abs(w - v).max()
      for w, v in zip(
        weights.trainable, keras_model.trainable_variables, strict=True
      )
    ]
    assert np.isfinite(steps).all() and max(steps) > 1e-4

  x = batches[0][0]

  @models.computation()
  def predict():
    constants = tf.nest.map_structure(tf.constant, model.initial_weights)
    return [
      model.apply(constants, tf.constant(x), training).predictions
      for training in (False, True, True)
    ]

  test, first, second = predict()
  np.testing.assert_allclose(test, keras_model(x), atol=1e-6)
  assert np.abs(first - test).max() > 1e-3
  assert np.abs(first - second).max() > 1e-3
  # Another client draws other numbers, whatever the seed of the program.
  assert np.abs(predict()[1] - first).max() > 1e-3


def functional_dropout():
  """A functional model that TFF makes of a Keras model with Dropout."""
  return tff.learning.models.functional_model_from_keras(
    sequential(dense(4), layers.Dropout(0.5), dense(2)),
    LOSS,
    (VECTOR, LABELS),
  )


def test_a_functional_model_with_dropout():
  model = models.from_functional(functional_dropout())
  _, loss = train(model, tff_debias.NoPersonalization(), make_batches(VECTOR))
  assert np.isfinite(loss)


class Sparse(tf.keras.Model):
  """A subclassed model that adds a loss of its activity."""

  def __init__(self):
    super().__init__()
    self.hidden = dense(3, activation='tanh', bias_regularizer='l1')
    self.head = dense(2)

  def call(self, x):
    hidden = self.hidden(x)
    self.add_loss(0.3 * tf.reduce_mean(tf.abs(hidden)))
    return self.head(hidden)


def added():
  x = layers.Input((3,))
  hidden = dense(3, activation='tanh')(x)
  keras_model = tf.keras.Model(x, dense(2)(hidden))
  keras_model.add_loss(0.3 * tf.reduce_mean(hidden**2))
  return keras_model


REGULARIZED = {
  'weights': lambda: sequential(
    dense(3, kernel_regularizer=tf.keras.regularizers.L2(0.1)),
    sequential(dense(2, bias_regularizer='l1')),
  ),
  'activity': lambda: sequential(dense(3, activity_regularizer='l2'), dense(2)),
  'add_loss': added,
  'subclassed': Sparse,
}


@pytest.mark.parametrize(
  'kind, is_built',
  [
    ('weights', False),
    ('activity', False),
    ('add_loss', False),
    ('add_loss', True),
    ('subclassed', True),
  ],
)
def test_regularization_is_that_of_keras(kind, is_built):
  build = builder_of(REGULARIZED[kind])
  keras_model = build()
  batches = make_batches(VECTOR, 1)
  x, y = batches[0]
  keras_model(x)
  model = models.from_keras(
    build if is_built else keras_model, LOSS, (VECTOR, LABELS)
  )
  weights, loss = train(model, tff_debias.NoPersonalization(), batches)
  keras_model.compile(tf.keras.optimizers.SGD(RATE), LOSS)
  without = LOSS(y, keras_model(x)).numpy()
  expected = keras_model.train_on_batch(x, y)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert loss > without + 1e-3
  assert_weights(weights, keras_model)
