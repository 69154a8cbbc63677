"""Networks of many kinds, each with its inputs, labels and loss."""

import tempfile
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tff_debias import models

keras = tf.keras
layers = tf.keras.layers
MSE = tf.keras.losses.MeanSquaredError()
CROSS_ENTROPY = tf.keras.losses.SparseCategoricalCrossentropy(True)
VECTOR = tf.TensorSpec([None, 3])
IMAGE = tf.TensorSpec([None, 6, 6, 2])
TOKENS = tf.TensorSpec([None, 4], tf.int32)
TEXT = tf.TensorSpec([None], tf.string)
Y = tf.TensorSpec([None, 2])
LABELS = np.array([0, 1, 1, 0], np.int32)
WORDS = np.array(['red apple', 'green pear', 'blue sky', 'red sky'])


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


class Branching(keras.Model):
  """A subclassed model with a `tf.function`, an `if` and its own loss."""

  def __init__(self):
    super().__init__()
    self.bag = {'a': dense(4), 'list': [dense(2)]}
    self.scale = tf.Variable(tf.ones([2]))

  @tf.function
  def hidden(self, x):
    hidden = tf.tanh(self.bag['a'](x))
    if tf.reduce_sum(hidden) > -100:
      hidden *= 1.5
    return hidden

  def call(self, x):
    hidden = self.hidden(x)
    self.add_loss(0.01 * tf.reduce_sum(hidden**2))
    return self.bag['list'][0](hidden) * self.scale


class Tied(keras.Model):
  """A subclassed model that uses one weight twice."""

  def __init__(self):
    super().__init__()
    self.embedding = layers.Embedding(5, 4)

  def call(self, x):
    mean = tf.reduce_mean(self.embedding(x), axis=1)
    return tf.matmul(mean, self.embedding.embeddings, transpose_b=True)


class Looping(layers.Layer):
  """A layer with a loop, a `tf.function` and a weight that is not trained."""

  def build(self, shape):
    self.kernel = self.add_weight('kernel', (shape[-1], 3), regularizer='l1')
    self.count = self.add_weight(
      'count', (), trainable=False, initializer='ones'
    )

  @tf.function
  def product(self, x):
    if tf.reduce_sum(self.kernel) > 100.0:
      return x
    return x @ self.kernel

  def call(self, x):
    y = self.product(x)
    for i in tf.range(3):
      y += tf.cast(i, tf.float32) * self.count * tf.reduce_sum(self.kernel)
    return y


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
  """Numbers, constants and comparisons between the layers."""
  x = layers.Input((3,))
  hidden = dense(3)(Shift()(tf.where(x == 0.0, x, x * 0.5 + 1.0)))
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


def entangled():
  """One layer in two models, and twice in a row."""
  inner = sequential(dense(3))
  x = layers.Input((3,))
  return keras.Model(x, dense(2)(sequential(inner, inner)(x) + inner(x)))


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


def normalizing():
  layer = layers.Normalization()
  layer.adapt(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, -3.0]]))
  return sequential(layer, dense(2))


def frozen_backbone():
  """BatchNormalization that is not trained, as in transfer learning."""
  backbone = sequential(
    layers.Conv2D(4, 3, use_bias=False),
    layers.BatchNormalization(name='bn'),
    layers.GlobalAveragePooling2D(),
    shape=(6, 6, 2),
  )
  backbone.get_layer('bn').set_weights(
    [np.full(4, value, np.float32) for value in (1.5, 0.1, 0.2, 2.0)]
  )
  backbone.trainable = False
  x = layers.Input((6, 6, 2))
  return keras.Model(x, dense(2)(backbone(x)))


def augmented():
  return sequential(
    layers.RandomFlip(),
    layers.GlobalAveragePooling2D(),
    dense(2),
    shape=(6, 6, 2),
  )


def loaded():
  """Cut out of a model that was saved, with a new head."""
  path = tempfile.mkdtemp() + '/model.keras'
  sequential(dense(4, activation='relu'), dense(3)).save(path)
  base = keras.models.load_model(path, compile=False)
  return keras.Model(base.input, dense(2)(base.layers[-2].output))


class Served(keras.Model):
  """A SavedModel that is not trained, as of TensorFlow Hub, and a head."""

  def __init__(self, is_trained=False):
    super().__init__()
    path = tempfile.mkdtemp()
    tf.saved_model.save(sequential(dense(4, activation='tanh')), path)
    self.base, self.head = tf.saved_model.load(path), dense(2)
    if is_trained:
      self._trainable_weights += self.base.trainable_variables

  def call(self, x):
    return self.head(self.base(x))


def strings():
  layer = layers.StringLookup(output_mode='one_hot')
  layer.adapt(WORDS)
  return sequential(layer, dense(2), shape=(), dtype='string')


def sentences():
  layer = layers.TextVectorization(max_tokens=20, output_sequence_length=3)
  layer.adapt(WORDS)
  stack = layers.Embedding(20, 4), layers.GlobalAveragePooling1D(), dense(2)
  return sequential(layer, *stack, shape=(), dtype='string')


def mixed():
  keras.mixed_precision.set_global_policy('mixed_float16')
  hidden = dense(4, activation='tanh')
  keras.mixed_precision.set_global_policy('float32')
  return sequential(hidden, layers.Dense(2, dtype='float32'))


def small():
  return sequential(dense(4, activation='tanh'), dense(2))


_CLASS_WEIGHTS = tf.constant([1.0, 4.0])
_TABLE = tf.lookup.StaticHashTable(
  tf.lookup.KeyValueTensorInitializer([0, 1], [1.0, 5.0], tf.int32), 9.0
)


def each(y, p):
  return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)


def branching_loss(y, p):
  loss = tf.reduce_mean(each(y, p))
  if loss > 0.1:
    loss *= 2
  return loss


class Kind(NamedTuple):
  """A network, its inputs and its loss."""

  build: Any
  spec: Any
  loss: Any = CROSS_ENTROPY
  y: Any = LABELS


KINDS = {
  'entangled': Kind(entangled, VECTOR),
  'Lambda': Kind(
    lambda: sequential(layers.Lambda(lambda x: x @ _MATRIX), dense(2)), VECTOR
  ),
  'looping': Kind(lambda: sequential(Looping(), dense(2)), VECTOR),
  'not built': Kind(
    lambda: keras.Sequential([dense(4, activation='relu'), dense(2)]), VECTOR
  ),
  'subclassed': Kind(Declared, VECTOR),
  'subclassed, if': Kind(Branching, VECTOR),
  'tied': Kind(Tied, TOKENS),
  'frozen BatchNormalization': Kind(frozen_backbone, IMAGE),
  'RandomFlip': Kind(augmented, IMAGE),
  'loaded': Kind(loaded, VECTOR),
  'SavedModel': Kind(Served, VECTOR),
  'StringLookup': Kind(strings, TEXT),
  'TextVectorization': Kind(sentences, TEXT),
  'mixed precision': Kind(mixed, VECTOR),
  'padded': Kind(
    lambda: sequential(
      layers.Embedding(5, 4, mask_zero=True),
      dense(3),
      shape=(4,),
      dtype='int32',
    ),
    TOKENS,
    y=np.array([[0, 1, 2, 0]] * 4, np.int32),
  ),
  'loss with ==': Kind(
    small, VECTOR, lambda y, p: tf.where(y == 1, 3.0, 1.0) * each(y, p)
  ),
  'loss with a tensor': Kind(
    small, VECTOR, lambda y, p: tf.gather(_CLASS_WEIGHTS, y) * each(y, p)
  ),
  'loss with a table': Kind(
    small, VECTOR, lambda y, p: _TABLE.lookup(y) * each(y, p)
  ),
  'loss with if': Kind(small, VECTOR, branching_loss),
}


def inputs(spec, examples=4, seed=0):
  """Examples of a spec, or of a structure of specs."""
  random = np.random.RandomState(seed)
  shape = (examples, *spec.shape[1:])
  if spec.dtype == tf.string:
    return WORDS[random.randint(4, size=examples)]
  if spec.dtype.is_integer:
    return random.randint(5, size=shape).astype(np.int32)
  return random.normal(size=shape).astype(np.float32)


_MATRIX = tf.constant(inputs(VECTOR, 3, seed=9))


def eager_maml(keras_model, kind, x, rate):
  """The losses before and after a step of Keras, and the MAML gradient."""
  variables, y = keras_model.trainable_variables, tf.constant(kind.y)
  start = [tf.identity(v) for v in variables]

  def gradient():
    with tf.GradientTape() as tape:
      predictions = keras_model(x, training=True)
      loss = tf.reduce_mean(kind.loss(y, predictions))
      loss += sum(keras_model.losses)
    slopes = tape.gradient(loss, variables, unconnected_gradients='zero')
    return loss, [tf.convert_to_tensor(g) for g in slopes]

  before, first = gradient()
  for v, g in zip(variables, first, strict=True):
    v.assign_sub(rate * g)
  after, second = gradient()
  for v, value in zip(variables, start, strict=True):
    v.assign(value)
  # (I - a H) g, by the derivative of the first gradient along the second.
  with tf.GradientTape() as tape:
    pairs = zip(gradient()[1], second, strict=True)
    slope = tf.add_n([tf.reduce_sum(a * b) for a, b in pairs])
  products = tape.gradient(slope, variables, unconnected_gradients='zero')
  return (
    before,
    after,
    [
      g - rate * tf.convert_to_tensor(h)
      for g, h in zip(second, products, strict=True)
    ],
  )


def run(model, x, weights=None, training=False):
  weights = tf.nest.map_structure(tf.constant, weights or model.initial_weights)
  return tf.function(lambda: model.apply(weights, x, training))()


def make(keras_model, *args):
  """A model of three inputs and two outputs."""
  return models.from_keras(keras_model, MSE, (VECTOR, Y), *args)
