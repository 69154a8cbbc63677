import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import networks
from tff_debias import models
from tff_debias import personalizations

layers = tf.keras.layers
MSE = networks.MSE
VECTOR = networks.VECTOR
IMAGE = networks.IMAGE
Y = networks.Y
dense = networks.dense
sequential = networks.sequential
inputs = networks.inputs
make = networks.make
run = networks.run


@pytest.mark.parametrize('name', networks.NETWORKS)
def test_a_keras_model(name):
  build, x_spec = networks.NETWORKS[name]
  keras_model = build()
  model = models.from_keras(keras_model, MSE, (x_spec, Y))
  networks.check_against_keras(model, keras_model, x_spec)


@pytest.mark.parametrize('name', networks.FUNCTION_NETWORKS)
def test_a_function_that_builds_a_keras_model(name):
  build, x_spec = networks.FUNCTION_NETWORKS[name]
  made = []

  def remember():
    made.append(build())
    return made[-1]

  model = models.from_keras(remember, MSE, (x_spec, Y))
  networks.check_against_keras(model, made[0], x_spec)


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
  model = make(networks.Declared)
  run(model, inputs(VECTOR))
  keras_model = networks.Declared()
  assert keras_model(inputs(VECTOR)).shape == (4, 2)
  keras_model.compile('sgd', 'mse')
  history = keras_model.fit(inputs(VECTOR), np.zeros((4, 2)), verbose=0)
  assert np.isfinite(history.history['loss']).all()


def test_inputs_by_name_and_in_a_tuple():
  a, b = layers.Input((3,), name='a'), layers.Input((2,), name='b')
  outputs = dense(2)(layers.concatenate([b, a]))
  xs = {'a': inputs(VECTOR), 'b': inputs(Y, seed=1)}
  for keras_model, spec, x in (
    (tf.keras.Model({'a': a, 'b': b}, outputs), {'a': VECTOR, 'b': Y}, xs),
    (tf.keras.Model([a, b], outputs), (VECTOR, Y), (xs['a'], xs['b'])),
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
  keras_model = networks.convolutional()
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
  model = make(keras_model)
  np.testing.assert_allclose(run(model, x).feature, body(x), atol=1e-6)
  assert model.output_spec.feature.shape.as_list() == [None, 4]
  assert model.output_spec.predictions.shape.as_list() == [None, 2]


def test_the_feature_of_other_weights():
  model = make(sequential(dense(4), dense(2)))
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
  model = make(keras_model)
  x = inputs(VECTOR)
  np.testing.assert_allclose(run(model, x).feature, body(x), atol=1e-6)


def test_the_feature_inside_of_a_nested_model():
  body = dense(4, activation='relu')
  head = tf.keras.Sequential([layers.Input((4,)), layers.ReLU(), dense(2)])
  keras_model = sequential(body, head)
  model = make(keras_model)
  x = inputs(VECTOR)
  np.testing.assert_allclose(run(model, x).feature, body(x), atol=1e-6)


def test_the_feature_of_a_model_that_knows_its_shapes_late():
  made = []

  def build():
    made.append(networks.undefined())
    return made[-1]

  model = make(build)
  x = inputs(VECTOR)
  feature = run(model, x).feature
  np.testing.assert_allclose(feature, made[0].layers[0](x), atol=1e-6)


def test_a_named_layer_gives_its_output():
  first, second = dense(5, 'first'), dense(4, 'second', activation='tanh')
  keras_model = sequential(
    tf.keras.Sequential([layers.Input((3,)), first]), second, dense(2, 'last')
  )
  x = inputs(VECTOR)
  for name, expected in (
    ('first', first(x)),
    ('second', second(first(x))),
    ('last', keras_model(x)),
  ):
    model = make(keras_model, None, name)
    np.testing.assert_allclose(run(model, x).feature, expected, atol=1e-6)


def test_a_layer_that_is_called_twice_gives_its_last_output():
  x = layers.Input((3,))
  twice = dense(3, 'twice')
  once = twice(x)
  keras_model = tf.keras.Model(x, dense(2)(twice(once)))
  model = make(keras_model, None, 'twice')
  x = inputs(VECTOR)
  np.testing.assert_allclose(run(model, x).feature, twice(twice(x)), atol=1e-6)


def test_dropout_as_the_feature():
  keras_model = sequential(layers.Dropout(0.5, name='drop'), dense(2))
  model = make(keras_model, None, 'drop')
  x = np.ones((20, 3), np.float32)
  assert set(np.unique(run(model, x, training=True).feature)) == {0, 2}
  np.testing.assert_array_equal(run(model, x).feature, x)


def test_a_layer_that_is_not_there():
  keras_model = sequential(dense(4, 'body'), dense(2, 'head'))
  with pytest.raises(ValueError, match="no layer 'neck'.*are body, head"):
    make(keras_model, None, 'neck')


def test_a_layer_that_is_not_called():
  x = layers.Input((3,), name='start')
  keras_model = tf.keras.Model(x, dense(2)(x))
  for model, layer in ((keras_model, 'start'), (networks.Declared, 'unused')):
    with pytest.raises(ValueError, match='name another one'):
      make(model, None, layer)


def test_a_subclassed_model_has_no_feature_but_a_named_one():
  model = make(networks.Declared)
  assert model.output_spec.feature is None
  with pytest.raises(ValueError, match='feature_layer'):
    personalizations.Proto(2).check_model(
      models.from_keras(networks.Declared, MSE, (VECTOR, INTEGER_Y))
    )


# What is refused.


def batch_normalization():
  return layers.BatchNormalization()


def stateful():
  x = layers.Input(batch_shape=(4, 3))
  state = layers.LSTM(4, stateful=True)(layers.Reshape((3, 1))(x))
  return tf.keras.Model(x, dense(2)(state))


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


OUTSIDE = tf.keras.Sequential([layers.Input((3,)), layers.Dense(2)])
INTEGER_Y = tf.TensorSpec([None], tf.int32)


def subclassed(called=True):
  model = networks.Declared()
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
    (lambda: subclassed(called=False), 'a function that builds it'),
    (subclassed, 'a function that builds it'),
    (lambda: tf.keras.Sequential([dense(2)]), 'a function that builds it'),
    (networks.entangled, 'a function that builds the model'),
    (frozen_layers_of_one_shape, 'a function that builds the model'),
    (lambda: sequential(layers.Flatten()), 'no trainable weight'),
    (lambda: sequential(dense(2, trainable=False)), 'no trainable weight'),
  ],
)
def test_a_keras_model_that_is_refused(keras_model, advice):
  with pytest.raises(ValueError, match=advice):
    make(keras_model())


@pytest.mark.parametrize(
  'build, advice',
  [
    (
      lambda: tf.keras.Sequential([dense(2), batch_normalization()]),
      'is a BatchNormalization.* Use tf.keras.layers.GroupNorm',
    ),
    (stateful, 'stateful=False'),
    (lambda: sequential(Counter(), dense(2)), 'layers without state'),
    (lambda: OUTSIDE, 'make all its layers anew'),
    (lambda: sequential(dense(2, kernel_constraint='non_neg')), 'constraint'),
  ],
)
def test_a_function_that_is_refused(build, advice):
  with pytest.raises(ValueError, match=advice):
    make(build)


def test_an_error_without_a_message_is_named_by_its_class():
  made = []

  def build():
    if made:
      raise RuntimeError
    made.append(sequential(dense(2)))
    return made[0]

  with pytest.raises(ValueError, match='a function of its.*said: RuntimeError'):
    make(build)


def test_arguments_of_a_wrong_type():
  keras_model = sequential(dense(2))
  with pytest.raises(TypeError, match='or a function that builds one, got int'):
    make(3)
  with pytest.raises(TypeError, match=r'return a tf.keras.Model, got Dense'):
    make(lambda: dense(2))
  for loss in ('mse', None, tf.keras.losses.MeanSquaredError):
    with pytest.raises(TypeError, match='must be a function or a Keras loss'):
      models.from_keras(keras_model, loss, (VECTOR, Y))
  with pytest.raises(TypeError, match='must be a tff.learning.models.Func'):
    models.from_functional(keras_model)


def test_an_input_spec_that_does_not_fit_the_model():
  with pytest.raises(ValueError, match='incompatible with the layer'):
    models.from_keras(sequential(dense(2)), MSE, (tf.TensorSpec([None, 5]), Y))


# The loss and the metrics.


@pytest.mark.parametrize(
  'loss',
  [
    MSE,
    tf.keras.losses.MeanSquaredError(tf.keras.losses.Reduction.NONE),
    tf.keras.losses.mean_squared_error,
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
    tf.keras.metrics.MeanSquaredError('square'),
    tf.keras.metrics.MeanAbsoluteError('absolute'),
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
      collections.OrderedDict(a=tf.keras.metrics.MeanSquaredError),
      ['a'],
    ),
    (tf.keras.metrics.MeanSquaredError, ['mean_squared_error']),
    (lambda: tf.keras.metrics.MeanSquaredError('square'), ['square']),
  ],
)
def test_the_metrics(given, names):
  model = make(sequential(dense(2)), given)
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
    make(sequential(dense(2)), given)


def test_metrics_of_one_name_are_not_lost():
  with pytest.raises(ValueError) as error:
    make(
      sequential(dense(2)),
      lambda: [
        tf.keras.metrics.MeanSquaredError('a'),
        tf.keras.metrics.Mean('a'),
      ],
    )
  assert 'different names' in f'{error.value} {error.value.__cause__}'


def test_a_loss_that_is_a_sum_is_refused():
  loss = tf.keras.losses.MeanSquaredError(tf.keras.losses.Reduction.SUM)
  with pytest.raises(ValueError, match='mean over the batch.*SUM'):
    models.from_keras(sequential(dense(2)), loss, (VECTOR, Y))


def test_weights_of_another_type_are_refused():
  keras_model = tf.keras.Sequential(
    [layers.Input((3,)), layers.Dense(2, dtype='float64')]
  )
  with pytest.raises(ValueError, match='must be float32 arrays, got float64'):
    make(keras_model)


def test_mixed_precision_is_refused_by_name():
  layer = layers.Dense(2, dtype='mixed_float16')
  with pytest.raises(ValueError, match="float16 with.*policy\\('float32'\\)"):
    make(sequential(layer))
