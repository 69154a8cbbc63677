"""Networks of many kinds, and their comparison with Keras itself."""

import numpy as np
import tensorflow as tf

from tff_debias import models

keras = tf.keras
layers = tf.keras.layers
MSE = tf.keras.losses.MeanSquaredError()
VECTOR = tf.TensorSpec([None, 3])
IMAGE = tf.TensorSpec([None, 6, 6, 2])
TOKENS = tf.TensorSpec([None, 4], tf.int32)
Y = tf.TensorSpec([None, 2])


def dense(units, name=None, **options):
  return layers.Dense(units, bias_initializer='normal', name=name, **options)


def sequential(*stack, shape=(3,), dtype=None):
  return keras.Sequential([layers.Input(shape, dtype=dtype), *stack])


class Declared(keras.Model):
  """A subclassed model whose layers are called in another order."""

  def __init__(self):
    super().__init__()
    self.head = dense(2)
    self.unused = layers.Flatten(name='unused')
    self.body = dense(5)

  def call(self, x):
    return self.head(tf.tanh(self.body(x)))


class WithTraining(keras.Model):
  """A subclassed model that takes `training` and has a list of layers."""

  def __init__(self):
    super().__init__()
    self.stack = [dense(4), layers.Dropout(0.5), dense(2)]

  def call(self, x, training=False):
    for layer in self.stack:
      x = layer(x, training=training) if 'dropout' in layer.name else layer(x)
    return x


class Block(layers.Layer):
  """A layer of layers, which get their weights in the reverse order."""

  def __init__(self, **options):
    super().__init__(**options)
    self.outer, self.inner = dense(3), dense(3)

  def call(self, x):
    return x + self.outer(tf.nn.relu(self.inner(x)))


def functional():
  x = layers.Input((3,))
  hidden = dense(4, activation='relu')(x)
  return keras.Model(x, dense(2)(layers.concatenate([hidden, x])))


def reversed_branches():
  """The order of the layers is not that in which they were made."""
  x = layers.Input((3,))
  late = dense(3)
  deep = dense(3)(x)
  y = dense(3)(deep)
  return keras.Model(x, dense(2)(late(x) * y))


class Shift(layers.Layer):
  """A layer that makes constants when it is made, and when it is built."""

  def __init__(self, **options):
    super().__init__(**options)
    self.scale = tf.constant(0.5)

  def build(self, shape):
    # More than TensorFlow copies into a graph by itself.
    self.table = tf.reshape(tf.range(600.0), (200, 3)) / 600

  def call(self, x):
    return self.scale * x + self.table[7]


def operations():
  """Numbers and constants between the layers."""
  x = layers.Input((3,))
  hidden = dense(3)(Shift()(x * 0.5 + 1.0))
  return keras.Model(x, dense(2)(hidden / 3.0))


def nested():
  inner = sequential(dense(4, activation='tanh'), dense(3))
  middle = sequential(dense(3), sequential(dense(4), dense(3)))
  x = layers.Input((3,))
  return keras.Model(x, dense(2)(middle(inner(x)) * inner(x)))


def shared():
  x = layers.Input((3,))
  twice = dense(3, activation='tanh')
  return keras.Model(x, dense(2)(twice(twice(x))))


def convolutional():
  return sequential(
    layers.Conv2D(4, 3, activation='relu', bias_initializer='normal'),
    layers.GroupNormalization(2, gamma_initializer='normal'),
    layers.MaxPool2D(2),
    layers.DepthwiseConv2D(2, padding='same'),
    layers.Flatten(),
    dense(2),
    shape=(6, 6, 2),
  )


def recurrent():
  return sequential(
    layers.Embedding(5, 3, mask_zero=True),
    layers.SimpleRNN(2),
    dense(2),
    shape=(4,),
    dtype=tf.int32,
  )


def attention():
  x = layers.Input((3,))
  tokens = layers.Reshape((3, 1))(x)
  tokens = layers.MultiHeadAttention(2, 2)(tokens, value=tokens)
  tokens = layers.LayerNormalization()(tokens)
  return keras.Model(x, dense(2)(layers.Flatten()(tokens)))


def frozen():
  """Of layers of one shape, some frozen; one by its model, one later."""
  pair = sequential(dense(3), dense(3))
  pair.trainable = False
  model = sequential(dense(3, trainable=False), dense(3), pair, dense(2))
  model.layers[1].trainable = False
  return model


def normalizing():
  layer = layers.Normalization()
  layer.adapt(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, -3.0]]))
  return sequential(layer, dense(2))


def entangled():
  """One layer in two models, which cloning would make two."""
  inner = sequential(dense(3))
  x = layers.Input((3,))
  return keras.Model(x, dense(2)(sequential(dense(3), inner)(x) + inner(x)))


def undefined():
  """A model that knows its shapes only when it is called."""
  return keras.Sequential([dense(4, activation='relu'), dense(2)])


NETWORKS = {
  'sequential': (lambda: sequential(dense(4), dense(2)), VECTOR),
  'functional': (functional, VECTOR),
  'reversed branches': (reversed_branches, VECTOR),
  'operations': (operations, VECTOR),
  'nested': (nested, VECTOR),
  'shared': (shared, VECTOR),
  'custom layer': (lambda: sequential(Block(), dense(2)), VECTOR),
  'lambda': (
    lambda: sequential(layers.Lambda(lambda x: 2 * x), dense(2)),
    VECTOR,
  ),
  'dropout': (lambda: sequential(layers.Dropout(0.5), dense(2)), VECTOR),
  'convolutional': (convolutional, IMAGE),
  'recurrent': (recurrent, TOKENS),
  'attention': (attention, VECTOR),
  'frozen': (frozen, VECTOR),
  'normalizing': (normalizing, VECTOR),
}
FUNCTION_NETWORKS = {
  'operations': (operations, VECTOR),
  'functional': (functional, VECTOR),
  'reversed branches': (reversed_branches, VECTOR),
  'custom layer': (lambda: sequential(Block(), dense(2)), VECTOR),
  'convolutional': (convolutional, IMAGE),
  'frozen': (frozen, VECTOR),
  # These have to be given as a function.
  'entangled': (entangled, VECTOR),
  'undefined': (undefined, VECTOR),
  'subclassed': (Declared, VECTOR),
  'subclassed, training': (WithTraining, VECTOR),
}


def inputs(spec, num_examples=4, seed=0):
  random = np.random.RandomState(seed)
  shape = [num_examples, *spec.shape[1:]]
  if spec.dtype.is_integer:
    return random.randint(5, size=shape).astype(np.int32)
  return random.normal(size=shape).astype(np.float32)


def run(model, x, weights=None, training=False):
  weights = tf.nest.map_structure(tf.constant, weights or model.initial_weights)
  return tf.function(lambda: model.apply(weights, x, training))()


def check_against_keras(model, keras_model, x_spec):
  """The same outputs and weights, in the order of the Keras model."""
  x = inputs(x_spec)
  groups = keras_model.trainable_variables, keras_model.non_trainable_variables
  initial = model.initial_weights
  for values, variables in zip(
    (initial.trainable, initial.non_trainable), groups, strict=True
  ):
    assert len(values) == len(variables)
    for value, variable in zip(values, variables, strict=True):
      assert isinstance(value, (np.ndarray, np.generic))
      np.testing.assert_array_equal(value, variable)
  before = keras_model(x)
  np.testing.assert_allclose(run(model, x).predictions, before, atol=1e-6)
  random = np.random.RandomState(1)
  others = models.ModelWeights(
    *(
      tuple(
        (np.asarray(v) + random.uniform(0.1, 1, v.shape)).astype(
          v.dtype.as_numpy_dtype
        )
        for v in variables
      )
      for variables in groups
    )
  )
  for values, variables in zip(others, groups, strict=True):
    for value, variable in zip(values, variables, strict=True):
      variable.assign(value)
  for layer in keras_model.submodules:
    if isinstance(layer, layers.Normalization):
      layer.finalize_state()
  after = keras_model(x)
  assert np.abs(after - before).max() > 0.01
  np.testing.assert_allclose(
    run(model, x, others).predictions, after, rtol=1e-5, atol=1e-5
  )
  # The model does not see what became of the Keras model.
  np.testing.assert_allclose(run(model, x).predictions, before, atol=1e-6)


def make(keras_model, *args):
  """A model of three inputs and two outputs."""
  return models.from_keras(keras_model, MSE, (VECTOR, Y), *args)
