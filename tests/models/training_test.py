"""Networks of every family are trained by a round, as Keras would train them.

One network holds all families side by side: its loss is their sum, so each
family is trained as if it were alone, and a round is compiled once for all.
"""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from models import networks
import tff_debias
from tff_debias import models

layers = tf.keras.layers
dense = networks.dense
sequential = networks.sequential
VECTOR = networks.VECTOR
SERIES = tf.TensorSpec([None, 2, 3])
LABELS = tf.TensorSpec([None], tf.int32)
LOSS = tf.keras.losses.SparseCategoricalCrossentropy(True)
RATE = 0.2
MAML = tff_debias.Maml(num_steps=1, learning_rate=0.3)

pytestmark = pytest.mark.usefixtures('runtime')


def series(*stack):
  return sequential(*stack, dense(2), shape=SERIES.shape[1:])


def attention(**options):
  x = layers.Input(SERIES.shape[1:])
  attended = layers.MultiHeadAttention(1, 2, **options)(x, x)
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


def frozen():
  return sequential(
    dense(3, activation='tanh', trainable=False), dense(3), dense(2)
  )


def embedding():
  return sequential(
    layers.Embedding(5, 3, mask_zero=True),
    layers.GlobalAveragePooling1D(),
    dense(2),
    shape=(4,),
    dtype=tf.int32,
  )


FAMILIES = {
  'LSTM': (lambda: series(layers.LSTM(2)), SERIES),
  'Embedding': (embedding, networks.TOKENS),
  'MultiHeadAttention': (attention, SERIES),
  'GroupNormalization': (networks.convolutional, networks.IMAGE),
  'Conv1D': (
    lambda: series(layers.Conv1D(2, 2, activation='tanh'), layers.Flatten()),
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
  'LSTM': lambda: series(layers.LSTM(2, dropout=0.5, recurrent_dropout=0.5)),
  'MultiHeadAttention': lambda: attention(dropout=0.5),
}


def side_by_side(families):
  """One network of many: from inputs to outputs, by the name of the family."""
  tf.keras.utils.set_random_seed(1)
  xs = {
    name: tf.nest.map_structure(
      lambda s: layers.Input(s.shape[1:], dtype=s.dtype), spec
    )
    for name, (_, spec) in families.items()
  }
  return tf.keras.Model(
    xs, {name: build()(xs[name]) for name, (build, _) in families.items()}
  )


def sum_of_losses(labels, outputs):
  total = 0.0
  for output in outputs.values():
    if isinstance(output, dict):
      total += tf.reduce_mean(output['size'] ** 2)
      output = output['class']
    total += LOSS(labels, output)
  return total


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
  """The weights and the metrics after one round of one client."""
  process = tff_debias.build_learning_process(
    model,
    personalization,
    tff_debias.NoCorrection(),
    learning_rate=RATE,
    max_grad_norm=math.inf,
  )
  client = dataset(batches)
  result = process.next(process.initialize(), [client])
  metrics = result.metrics['client_work']['train']
  return process.get_model_weights(result.state), metrics


def assert_weights(weights, keras_model):
  for group in ('trainable', 'non_trainable'):
    expected = getattr(keras_model, f'{group}_variables')
    for value, e in zip(getattr(weights, group), expected, strict=True):
      np.testing.assert_allclose(value, e, rtol=1e-4, atol=1e-5, err_msg=e.name)


@pytest.mark.slow
def test_families_of_layers():
  build = functools.partial(side_by_side, FAMILIES)
  keras_model = build()
  x_spec = {name: spec for name, (_, spec) in FAMILIES.items()}
  model = models.from_keras(build, sum_of_losses, (x_spec, LABELS))
  ((x, y),) = batches = make_batches(x_spec, 1)
  # Support and query are the same.
  weights, _ = train(model, MAML, batches * 2)
  kind = networks.Kind(build, x_spec, sum_of_losses, y)
  *_, step = networks.eager_maml(keras_model, kind, x, MAML.learning_rate)
  for variable, direction in zip(
    keras_model.trainable_variables, step, strict=True
  ):
    variable.assign_sub(RATE * direction)
  assert_weights(weights, keras_model)
  for layer in keras_model.layers:
    if layer.trainable_variables:
      names = {v.name for v in layer.trainable_variables}
      assert any(
        np.abs(g).max() > 1e-3
        for v, g in zip(keras_model.trainable_variables, step, strict=True)
        if v.name in names
      )


@pytest.mark.slow
def test_families_of_random_layers():
  keras_model = side_by_side({n: (b, SERIES) for n, b in RANDOM.items()})
  x_spec = dict.fromkeys(RANDOM, SERIES)
  model = models.from_keras(keras_model, sum_of_losses, (x_spec, LABELS))
  batches = make_batches(x_spec)
  weights, metrics = train(model, tff_debias.NoPersonalization(), batches)
  assert np.isfinite(metrics['loss'])
  for w, v in zip(
    weights.trainable, keras_model.trainable_variables, strict=True
  ):
    assert np.isfinite(w).all()
    assert v.name.endswith('bias:0') or np.abs(w - v).max() > 1e-4, v.name

  x = batches[0][0]

  @models.computation()
  def predict():
    constants = tf.nest.map_structure(tf.constant, model.initial_weights)
    return [
      model.apply(
        constants, tf.nest.map_structure(tf.constant, x), training
      ).predictions
      for training in (False, True, True)
    ]

  test, first, second = predict()
  # Another client draws other numbers, whatever the seed of the program.
  another = predict()[1]
  right = keras_model(x)
  for name in RANDOM:
    np.testing.assert_allclose(test[name], right[name], atol=1e-6)
    for drawn in (test, second, another):
      assert np.abs(first[name] - drawn[name]).max() > 1e-3, name


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


def regularized():
  """Losses of weights, of an activity, of a nested model and of the model."""
  x = layers.Input((3,))
  hidden = dense(3, kernel_regularizer=tf.keras.regularizers.L2(0.1))(x)
  hidden = dense(3, activation='tanh', activity_regularizer='l2')(hidden)
  keras_model = tf.keras.Model(x, Sparse()(hidden))
  keras_model.add_loss(0.3 * tf.reduce_mean(hidden**2))
  return keras_model


@pytest.mark.slow
def test_regularization_is_that_of_keras():
  keras_model = regularized()
  batches = make_batches(VECTOR, 1)
  x, y = batches[0]
  keras_model(x)
  model = models.from_keras(keras_model, LOSS, (VECTOR, LABELS))
  weights, metrics = train(model, tff_debias.NoPersonalization(), batches)
  keras_model.compile(tf.keras.optimizers.SGD(RATE), LOSS)
  without = LOSS(y, keras_model(x)).numpy()
  expected = keras_model.train_on_batch(x, y)
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  assert expected > without + 1e-3
  assert_weights(weights, keras_model)


@pytest.mark.slow
def test_padding_counts_nowhere():
  build, spec, _, y = networks.KINDS['padded']
  keras_model, x = build(), networks.inputs(spec)
  model = models.from_keras(
    keras_model,
    networks.each,
    (spec, spec),
    lambda: [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
  )
  keras_model.compile(
    tf.keras.optimizers.SGD(RATE), LOSS, weighted_metrics=['accuracy']
  )
  expected = keras_model.evaluate(x, y, verbose=0)
  weights, metrics = train(model, tff_debias.NoPersonalization(), [(x, y)])
  np.testing.assert_allclose(metrics['loss'], expected[0], rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], expected[1], rtol=1e-5)
  keras_model.train_on_batch(x, y)
  assert_weights(weights, keras_model)
