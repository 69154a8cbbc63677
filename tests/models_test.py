import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import models
from tff_debias import personalizations

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


@pytest.mark.parametrize('name', NETWORKS)
def test_a_keras_model(name):
  build, x_spec = NETWORKS[name]
  keras_model = build()
  model = models.from_keras(keras_model, MSE, (x_spec, Y))
  check_against_keras(model, keras_model, x_spec)


@pytest.mark.parametrize('name', FUNCTION_NETWORKS)
def test_a_function_that_builds_a_keras_model(name):
  build, x_spec = FUNCTION_NETWORKS[name]
  made = []

  def remember():
    made.append(build())
    return made[-1]

  model = models.from_keras(remember, MSE, (x_spec, Y))
  check_against_keras(model, made[0], x_spec)


def test_an_lstm():
  # Keras puts it into a function of its own.
  keras_model = sequential(layers.LSTM(2), dense(2), shape=(4, 3))
  spec = tf.TensorSpec([None, 4, 3])
  model = models.from_keras(keras_model, MSE, (spec, Y))
  x = inputs(spec)
  np.testing.assert_allclose(
    run(model, x).predictions, keras_model(x), atol=1e-6
  )


def test_the_callers_keras_still_works():
  # Keras changes the base classes of what is built in a graph.
  model = models.from_keras(Declared, MSE, (VECTOR, Y))
  run(model, inputs(VECTOR))
  keras_model = Declared()
  assert keras_model(inputs(VECTOR)).shape == (4, 2)
  keras_model.compile('sgd', 'mse')
  history = keras_model.fit(inputs(VECTOR), np.zeros((4, 2)), verbose=0)
  assert np.isfinite(history.history['loss']).all()


def test_inputs_by_name_and_in_a_tuple():
  a, b = layers.Input((3,), name='a'), layers.Input((2,), name='b')
  outputs = dense(2)(layers.concatenate([b, a]))
  xs = {'a': inputs(VECTOR), 'b': inputs(Y, seed=1)}
  for keras_model, spec, x in (
    (keras.Model({'a': a, 'b': b}, outputs), {'a': VECTOR, 'b': Y}, xs),
    (keras.Model([a, b], outputs), (VECTOR, Y), (xs['a'], xs['b'])),
  ):
    model = models.from_keras(keras_model, MSE, {'x': spec, 'y': Y})
    output = run(model, x)
    np.testing.assert_allclose(output.predictions, keras_model(x), atol=1e-6)
    np.testing.assert_array_equal(
      output.feature, np.concatenate([xs['b'], xs['a']], axis=1)
    )


def test_dropout_only_in_training():
  keras_model = sequential(
    layers.Dropout(0.5), layers.Dense(3, kernel_initializer='identity')
  )
  model = models.from_keras(keras_model, MSE, (VECTOR, VECTOR))
  x = np.ones((20, 3), np.float32)
  np.testing.assert_array_equal(run(model, x).predictions, x)
  compute = tf.function(lambda: model.apply(model.initial_weights, x, True))
  first, second = compute().predictions, compute().predictions
  assert set(np.unique(first)) == {0, 2}
  assert np.any(first != second)


def test_the_gradient_is_that_of_keras():
  keras_model = convolutional()
  model = models.from_keras(keras_model, MSE, (IMAGE, Y))
  x, y = inputs(IMAGE), inputs(Y)
  with tf.GradientTape() as tape:
    loss = MSE(y, keras_model(x, training=True))
  expected = tape.gradient(loss, keras_model.trainable_variables)

  @tf.function
  def compute(weights):
    with tf.GradientTape() as tape:
      tape.watch(weights)
      loss = model.loss(
        y, model.apply(models.ModelWeights(weights, ()), x, True).predictions
      )
    return tape.gradient(loss, weights)

  gradient = compute(tuple(map(tf.constant, model.initial_weights.trainable)))
  assert len(gradient) == len(expected) == 8
  for g, e in zip(gradient, expected, strict=True):
    np.testing.assert_allclose(g, e, atol=1e-5)


# The feature.


def test_the_feature_is_the_input_of_the_last_layer_with_weights():
  x = inputs(VECTOR)
  body = dense(4, 'body', activation='relu')
  keras_model = sequential(body, dense(2), layers.Softmax())
  model = models.from_keras(keras_model, MSE, (VECTOR, Y))
  np.testing.assert_allclose(run(model, x).feature, body(x), atol=1e-6)
  assert model.output_spec.feature.shape.as_list() == [None, 4]
  assert model.output_spec.predictions.shape.as_list() == [None, 2]


def test_the_feature_of_other_weights():
  model = models.from_keras(sequential(dense(4), dense(2)), MSE, (VECTOR, Y))
  _, _, *head = model.initial_weights.trainable
  weights = models.ModelWeights(
    (np.eye(3, 4, dtype=np.float32), np.ones(4, np.float32), *head), ()
  )
  x = inputs(VECTOR)
  np.testing.assert_array_equal(
    run(model, x, weights).feature, np.pad(x, [(0, 0), (0, 1)]) + 1
  )


def test_the_feature_of_a_frozen_last_layer():
  body = dense(4)
  keras_model = sequential(body, dense(2, trainable=False))
  model = models.from_keras(keras_model, MSE, (VECTOR, Y))
  x = inputs(VECTOR)
  np.testing.assert_allclose(run(model, x).feature, body(x), atol=1e-6)


def test_the_feature_inside_of_a_nested_model():
  body = dense(4, activation='relu')
  head = keras.Sequential([layers.Input((4,)), layers.ReLU(), dense(2)])
  keras_model = sequential(body, head)
  model = models.from_keras(keras_model, MSE, (VECTOR, Y))
  x = inputs(VECTOR)
  np.testing.assert_allclose(run(model, x).feature, body(x), atol=1e-6)


def test_the_feature_of_a_model_that_knows_its_shapes_late():
  made = []

  def build():
    made.append(undefined())
    return made[-1]

  model = models.from_keras(build, MSE, (VECTOR, Y))
  x = inputs(VECTOR)
  feature = run(model, x).feature
  np.testing.assert_allclose(feature, made[0].layers[0](x), atol=1e-6)


def test_a_named_layer_gives_its_output():
  first, second = dense(5, 'first'), dense(4, 'second', activation='tanh')
  keras_model = sequential(
    keras.Sequential([layers.Input((3,)), first]), second, dense(2, 'last')
  )
  x = inputs(VECTOR)
  for name, expected in (
    ('first', first(x)),
    ('second', second(first(x))),
    ('last', keras_model(x)),
  ):
    model = models.from_keras(keras_model, MSE, (VECTOR, Y), None, name)
    np.testing.assert_allclose(run(model, x).feature, expected, atol=1e-6)


def test_a_layer_that_is_called_twice_gives_its_last_output():
  x = layers.Input((3,))
  twice = dense(3, 'twice')
  once = twice(x)
  keras_model = keras.Model(x, dense(2)(twice(once)))
  model = models.from_keras(keras_model, MSE, (VECTOR, Y), None, 'twice')
  x = inputs(VECTOR)
  np.testing.assert_allclose(run(model, x).feature, twice(twice(x)), atol=1e-6)


def test_dropout_as_the_feature():
  keras_model = sequential(layers.Dropout(0.5, name='drop'), dense(2))
  model = models.from_keras(keras_model, MSE, (VECTOR, Y), None, 'drop')
  x = np.ones((20, 3), np.float32)
  assert set(np.unique(run(model, x, training=True).feature)) == {0, 2}
  np.testing.assert_array_equal(run(model, x).feature, x)


def test_a_layer_that_is_not_there():
  keras_model = sequential(dense(4, 'body'), dense(2, 'head'))
  with pytest.raises(ValueError, match="no layer 'neck'.*are body, head"):
    models.from_keras(keras_model, MSE, (VECTOR, Y), None, 'neck')


def test_a_layer_that_is_not_called():
  x = layers.Input((3,), name='start')
  keras_model = keras.Model(x, dense(2)(x))
  for model, layer in ((keras_model, 'start'), (Declared, 'unused')):
    with pytest.raises(ValueError, match='name another one'):
      models.from_keras(model, MSE, (VECTOR, Y), None, layer)


def test_a_subclassed_model_has_no_feature_but_a_named_one():
  model = models.from_keras(Declared, MSE, (VECTOR, Y))
  assert model.output_spec.feature is None
  with pytest.raises(ValueError, match='feature_layer'):
    personalizations.Proto(2).check_model(
      models.from_keras(Declared, MSE, (VECTOR, INTEGER_Y))
    )


# What is refused.


def batch_normalization():
  return layers.BatchNormalization()


def stateful():
  x = layers.Input(batch_shape=(4, 3))
  state = layers.LSTM(4, stateful=True)(layers.Reshape((3, 1))(x))
  return keras.Model(x, dense(2)(state))


class Configured(layers.Layer):
  """A layer that Keras can clone, but not as it was frozen."""

  def build(self, shape):
    self.kernel = self.add_weight('kernel', (3, 3), initializer='normal')

  def call(self, x):
    return x @ self.kernel

  def get_config(self):
    return {}


def frozen_layers_of_one_shape():
  model = sequential(Configured(), Configured(), Configured())
  model.layers[0].trainable = False
  return model


class Counter(layers.Layer):
  """A layer with a weight that changes when it is called."""

  def build(self, shape):
    self.count = self.add_weight('count', (), trainable=False)

  def call(self, x):
    self.count.assign_add(1.0)
    return x


OUTSIDE = keras.Sequential([layers.Input((3,)), layers.Dense(2)])
INTEGER_Y = tf.TensorSpec([None], tf.int32)


def subclassed(called=True):
  model = Declared()
  if called:
    model(inputs(VECTOR))
  return model


@pytest.mark.parametrize(
  'keras_model, advice',
  [
    (
      lambda: sequential(dense(2), batch_normalization()),
      'is a BatchNormalization.* Use tf.keras.layers.GroupNorm',
    ),
    (
      lambda: sequential(sequential(dense(2), batch_normalization())),
      'is a BatchNormalization.* Use tf.keras.layers.GroupNorm',
    ),
    (
      lambda: sequential(
        layers.Reshape((3, 1)),
        layers.TimeDistributed(batch_normalization()),
        layers.Flatten(),
        dense(2),
      ),
      'is a BatchNormalization.* Use tf.keras.layers.GroupNorm',
    ),
    (stateful, 'stateful=False'),
    (lambda: sequential(Counter(), dense(2)), 'layers without state'),
    (lambda: sequential(dense(2, kernel_regularizer='l2')), 'weight_decay'),
    (lambda: sequential(dense(2, activity_regularizer='l2')), 'weight_decay'),
    (
      lambda: sequential(sequential(dense(2, bias_regularizer='l1'))),
      'weight_decay',
    ),
    (lambda: subclassed(called=False), 'a function that builds it'),
    (subclassed, 'a function that builds it'),
    (lambda: keras.Sequential([dense(2)]), 'a function that builds it'),
    (entangled, 'a function that builds the model'),
    (frozen_layers_of_one_shape, 'a function that builds the model'),
    (lambda: sequential(layers.Flatten()), 'no trainable weight'),
    (lambda: sequential(dense(2, trainable=False)), 'no trainable weight'),
  ],
)
def test_a_keras_model_that_is_refused(keras_model, advice):
  with pytest.raises(ValueError, match=advice):
    models.from_keras(keras_model(), MSE, (VECTOR, Y))


@pytest.mark.parametrize(
  'build, advice',
  [
    (
      lambda: keras.Sequential([dense(2), batch_normalization()]),
      'is a BatchNormalization.* Use tf.keras.layers.GroupNorm',
    ),
    (
      lambda: keras.Sequential([dense(2, kernel_regularizer='l2')]),
      'weight_decay',
    ),
    (stateful, 'stateful=False'),
    (lambda: sequential(Counter(), dense(2)), 'layers without state'),
    (lambda: OUTSIDE, 'make all its layers anew'),
    (lambda: sequential(dense(2, kernel_constraint='non_neg')), 'constraint'),
  ],
)
def test_a_function_that_is_refused(build, advice):
  with pytest.raises(ValueError, match=advice):
    models.from_keras(build, MSE, (VECTOR, Y))


def test_arguments_of_a_wrong_type():
  keras_model = sequential(dense(2))
  with pytest.raises(TypeError, match='or a function that builds one, got int'):
    models.from_keras(3, MSE, (VECTOR, Y))
  with pytest.raises(TypeError, match=r'return a tf.keras.Model, got Dense'):
    models.from_keras(lambda: dense(2), MSE, (VECTOR, Y))
  for loss in ('mse', None, keras.losses.MeanSquaredError):
    with pytest.raises(TypeError, match='must be a function or a Keras loss'):
      models.from_keras(keras_model, loss, (VECTOR, Y))
  with pytest.raises(TypeError, match='must be a tff.learning.models.Func'):
    models.from_functional(keras_model)


@pytest.mark.parametrize(
  'spec',
  [
    VECTOR,
    None,
    (VECTOR,),
    (VECTOR, Y, Y),
    {'x': VECTOR},
    {'x': VECTOR, 'label': Y},
    (VECTOR, None),
    (VECTOR, tf.TensorSpec([])),
    (VECTOR, tf.TensorSpec(None)),
    (np.zeros((2, 3)), np.zeros((2, 2))),
    ([None, 3], [None, 2]),
    ({'a': VECTOR, 'b': 3}, Y),
  ],
)
def test_an_input_spec_that_is_not_that_of_a_batch(spec):
  with pytest.raises(ValueError, match='^input_spec must'):
    models.from_keras(sequential(dense(2)), MSE, spec)


def test_an_input_spec_that_does_not_fit_the_model():
  with pytest.raises(ValueError, match='incompatible with the layer'):
    models.from_keras(sequential(dense(2)), MSE, (tf.TensorSpec([None, 5]), Y))


# The loss and the metrics.


@pytest.mark.parametrize(
  'loss',
  [
    MSE,
    keras.losses.MeanSquaredError(keras.losses.Reduction.NONE),
    keras.losses.mean_squared_error,
    lambda labels, predictions: (labels - predictions) ** 2,
  ],
)
def test_the_loss_is_the_mean(loss):
  model = models.from_keras(sequential(dense(2)), loss, (VECTOR, Y))
  labels, predictions = inputs(Y), inputs(Y, seed=1)
  value = model.loss(labels, predictions)
  assert value.shape == ()
  np.testing.assert_allclose(
    value, np.mean((labels - predictions) ** 2), rtol=1e-6
  )


def two_metrics():
  return [
    keras.metrics.MeanSquaredError('square'),
    keras.metrics.MeanAbsoluteError('absolute'),
  ]


@pytest.mark.parametrize(
  'given, names',
  [
    (None, []),
    (list, []),
    (two_metrics, ['square', 'absolute']),
    (lambda: tuple(two_metrics()), ['square', 'absolute']),
    (
      lambda: collections.OrderedDict(zip('ab', two_metrics(), strict=True)),
      ['a', 'b'],
    ),
    (
      collections.OrderedDict(a=keras.metrics.MeanSquaredError),
      ['a'],
    ),
    (keras.metrics.MeanSquaredError, ['mean_squared_error']),
    (lambda: keras.metrics.MeanSquaredError('square'), ['square']),
  ],
)
def test_the_metrics(given, names):
  model = models.from_keras(sequential(dense(2)), MSE, (VECTOR, Y), given)
  state = model.metrics.initialize()
  batches = [(inputs(Y, n), inputs(Y, n, seed=1)) for n in (4, 1)]
  for labels, predictions in batches:
    state = model.metrics.update(
      state,
      labels,
      tff.learning.models.BatchOutput(
        loss=tf.constant(0.0),
        predictions=predictions,
        num_examples=tf.constant(len(labels)),
      ),
    )
  values = model.metrics.finalize(state)
  assert list(values) == names
  labels, predictions = (np.concatenate(p) for p in zip(*batches, strict=True))
  expected = (
    np.mean((labels - predictions) ** 2),
    np.mean(np.abs(labels - predictions)),
  )
  for value, e in zip(values.values(), expected, strict=False):
    np.testing.assert_allclose(value, e, rtol=1e-5)


@pytest.mark.parametrize(
  'given', ['mse', ['mse'], two_metrics(), two_metrics()[0]]
)
def test_metrics_of_a_wrong_type(given):
  with pytest.raises(TypeError, match='metrics'):
    models.from_keras(sequential(dense(2)), MSE, (VECTOR, Y), given)


def test_metrics_of_one_name_are_not_lost():
  with pytest.raises(ValueError) as error:
    models.from_keras(
      sequential(dense(2)),
      MSE,
      (VECTOR, Y),
      lambda: [keras.metrics.MeanSquaredError('a'), keras.metrics.Mean('a')],
    )
  assert 'different names' in f'{error.value} {error.value.__cause__}'


# Functional models.


def functional_model(predict=None, **options):
  """x ↦ tanh(x V) W, with a constant added that is not trained."""

  @tf.function
  def tanh_network(weights, x, training):
    (v, w), (constant,) = weights
    return tf.tanh(x @ v) @ w + constant

  random = np.random.RandomState(0)
  weights = [
    random.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4, 2))
  ]
  return tff.learning.models.FunctionalModel(
    initial_weights=(tuple(weights), (np.array([5.0, 6.0], np.float32),)),
    predict_on_batch_fn=predict or tanh_network,
    loss_fn=lambda output, label, sample_weight=None: tf.reduce_mean(
      (output - label) ** 2
    ),
    input_spec=(VECTOR, Y),
    **options,
  )


def test_a_functional_model():
  model = models.from_functional(
    functional_model(
      metrics_fns=tff.learning.metrics.create_functional_metric_fns(
        lambda: collections.OrderedDict(a=keras.metrics.MeanSquaredError())
      )
    ),
    lambda weights, x, training: tf.tanh(x @ weights[0][0]),
  )
  v, w = model.initial_weights.trainable
  (constant,) = model.initial_weights.non_trainable
  x, y = inputs(VECTOR), inputs(Y)
  assert model.input_spec == (VECTOR, Y)
  for factor in (1, 2):
    output = run(
      model, x, models.ModelWeights((factor * v, w), (factor * constant,))
    )
    feature = np.tanh(x @ (factor * v))
    expected = feature @ w + factor * constant
    np.testing.assert_allclose(output.feature, feature, atol=1e-5)
    np.testing.assert_allclose(output.predictions, expected, atol=1e-5)
  np.testing.assert_allclose(
    model.loss(y, expected), np.mean((y - expected) ** 2), rtol=1e-5
  )
  state = model.metrics.update(
    model.metrics.initialize(),
    y,
    tff.learning.models.BatchOutput(tf.constant(0.0), expected, tf.constant(4)),
  )
  np.testing.assert_allclose(
    model.metrics.finalize(state)['a'],
    np.mean((y - expected) ** 2),
    rtol=1e-5,
  )


def test_a_functional_model_without_feature_or_metrics():
  model = models.from_functional(functional_model())
  assert run(model, inputs(VECTOR)).feature is None
  assert model.output_spec.feature is None
  assert model.output_spec.predictions.shape.as_list() == [None, 2]
  assert not model.metrics.finalize(model.metrics.initialize())


def test_training_reaches_a_functional_model():
  @tf.function
  def predict(weights, x, training):
    return x[:, :2] if training else -x[:, :2]

  model = models.from_functional(
    functional_model(predict),
    lambda weights, x, training: x if training else -x,
  )
  x = inputs(VECTOR)
  for training, sign in ((True, 1), (False, -1)):
    output = run(model, x, training=training)
    np.testing.assert_array_equal(output.predictions, sign * x[:, :2])
    np.testing.assert_array_equal(output.feature, sign * x)


def test_a_functional_model_that_tff_makes_of_keras():
  keras_model = sequential(dense(4, activation='tanh'), dense(2))
  x = inputs(VECTOR)
  expected = keras_model(x).numpy()
  model = models.from_functional(
    tff.learning.models.functional_model_from_keras(
      keras_model, MSE, (VECTOR, Y)
    )
  )
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    output = model.apply(model.initial_weights, tf.constant(x), False)
    actual = session.run(output.predictions)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def keras_tanh_network():
  """The weights of the functional model in a Keras model."""
  keras_model = sequential(
    layers.Dense(4, 'tanh', use_bias=False), layers.Dense(2)
  )
  keras_model.layers[1].bias.assign([5.0, 6.0])
  v, w = functional_model().initial_weights[0]
  keras_model.layers[0].kernel.assign(v)
  keras_model.layers[1].kernel.assign(w)
  return models.from_keras(keras_model, MSE, (VECTOR, Y))


@pytest.mark.parametrize(
  'make',
  [lambda: models.from_functional(functional_model()), keras_tanh_network],
)
def test_derivatives_of_any_order_are_in_one_graph(make):
  model = make()
  x, y = inputs(VECTOR), inputs(Y)
  direction = np.random.RandomState(2).normal(size=(3, 4)).astype(np.float32)

  @tf.function
  def products(v):
    """The loss, its gradient, and its Hessian times the direction, in V."""
    others = model.initial_weights.trainable[1:]
    weights = models.ModelWeights(
      (v, *others), model.initial_weights.non_trainable
    )
    with tf.GradientTape() as outer:
      outer.watch(v)
      with tf.GradientTape() as inner:
        inner.watch(v)
        loss = model.loss(y, model.apply(weights, x, True).predictions)
      gradient = inner.gradient(loss, v)
      slope = tf.reduce_sum(gradient * direction)
    return loss, gradient, outer.gradient(slope, v)

  v, w = model.initial_weights.trainable[:2]
  loss, gradient, product = products(tf.constant(v))

  def expected_loss(v):
    return np.mean((np.tanh(x @ v) @ w + np.array([5, 6]) - y) ** 2)

  def expected_slope(v):
    """The derivative along the direction, by a complex step."""
    return expected_loss(v + 1e-30j * direction).imag / 1e-30

  v = v.astype(np.float64)
  np.testing.assert_allclose(loss, expected_loss(v), rtol=1e-5)
  np.testing.assert_allclose(
    np.sum(gradient * direction), expected_slope(v), rtol=1e-4
  )
  second = (
    expected_slope(v + 1e-4 * direction) - expected_slope(v - 1e-4 * direction)
  ) / 2e-4
  np.testing.assert_allclose(np.sum(product * direction), second, rtol=1e-4)
  # A function that is called keeps its derivatives to itself: everything is
  # computed again for each of them (DESIGN.md, Speed).
  graph = products.get_concrete_function(tf.TensorSpec([3, 4])).graph
  kinds = {op.type for op in graph.get_operations()}
  assert 'MatMul' in kinds
  assert not {kind for kind in kinds if kind.endswith('PartitionedCall')}


def test_a_loss_that_is_a_sum_is_refused():
  loss = keras.losses.MeanSquaredError(keras.losses.Reduction.SUM)
  with pytest.raises(ValueError, match='mean over the batch.*SUM'):
    models.from_keras(sequential(dense(2)), loss, (VECTOR, Y))


def test_weights_of_another_type_are_refused():
  keras_model = keras.Sequential(
    [layers.Input((3,)), layers.Dense(2, dtype='float64')]
  )
  with pytest.raises(ValueError, match='must be float32 arrays, got float64'):
    models.from_keras(keras_model, MSE, (VECTOR, Y))
