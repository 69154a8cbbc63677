import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import networks
import tff_debias
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


@pytest.mark.slow
@pytest.mark.usefixtures('runtime')
def test_kinds_of_networks():
  rate, made = 0.1, {}
  for name, kind in networks.KINDS.items():
    keras_model, x = kind.build(), inputs(kind.spec)
    y_spec = tf.TensorSpec([None, *kind.y.shape[1:]], tf.int32)
    # The model is not called before, and may have no weights yet.
    model = models.from_keras(keras_model, kind.loss, (kind.spec, y_spec))
    made[name] = keras_model, model, x

  def maml(name, weights, x):
    _, model, _ = made[name]

    def loss(trainable):
      moved = models.ModelWeights(trainable, weights.non_trainable)
      outputs = model.apply(moved, x, True)
      y = tf.constant(networks.KINDS[name].y)
      return model.loss(y, outputs.predictions) + outputs.regularization

    start = tuple(weights.trainable)
    with tf.GradientTape() as outer:
      outer.watch(start)
      with tf.GradientTape() as tape:
        tape.watch(start)
        before = loss(start)
      step = tape.gradient(before, start, unconnected_gradients='zero')
      after = loss(
        tuple(
          w - rate * tf.convert_to_tensor(g)
          for w, g in zip(start, step, strict=True)
        )
      )
    meta = outer.gradient(after, start, unconnected_gradients='zero')
    return before, after, tuple(map(tf.convert_to_tensor, meta))

  args = [(model.initial_weights, x) for _, model, x in made.values()]
  arg_type = tff.types.tensorflow_to_type(
    [
      (models.specs_of(model.initial_weights), networks.KINDS[name].spec)
      for name, (_, model, _) in made.items()
    ]
  )

  @models.computation(arg_type)
  def all_kinds(args):
    return [maml(name, *arg) for name, arg in zip(made, args, strict=True)]

  for name, (before, after, meta) in zip(made, all_kinds(args), strict=True):
    keras_model, _, x = made[name]
    expected = networks.eager_maml(keras_model, networks.KINDS[name], x, rate)
    np.testing.assert_allclose(before, expected[0], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(after, expected[1], rtol=1e-5, err_msg=name)
    for gradient, e in zip(meta, expected[2], strict=True):
      # Mixed precision rounds to 1e-3 of the largest.
      bound = 2e-3 if name == 'mixed precision' else 1e-5
      np.testing.assert_allclose(
        gradient, e, rtol=1e-4, atol=bound, err_msg=name
      )
    assert max(np.abs(gradient).max() for gradient in meta) > 1e-3, name


def test_the_weights_are_those_of_keras_when_the_model_was_made():
  keras_model = sequential(dense(4, trainable=False), dense(2))
  x, before = inputs(VECTOR), keras_model(inputs(VECTOR))
  model = make(keras_model)
  for values, variables in (
    (model.initial_weights.trainable, keras_model.trainable_variables),
    (model.initial_weights.non_trainable, keras_model.non_trainable_variables),
  ):
    for value, variable in zip(values, variables, strict=True):
      np.testing.assert_array_equal(value, variable)
      variable.assign_add(tf.ones_like(variable))
  np.testing.assert_allclose(run(model, x).predictions, before, atol=1e-6)
  np.testing.assert_allclose(
    run(model, x, models.ModelWeights.from_model(keras_model)).predictions,
    keras_model(x),
    atol=1e-5,
  )


def test_a_function_that_makes_a_keras_model():
  made = []
  model = make(lambda: made.append(networks.small()) or made[-1])
  x = inputs(VECTOR)
  np.testing.assert_allclose(run(model, x).predictions, made[0](x), atol=1e-6)
  assert len(made) == 1


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


@pytest.mark.usefixtures('runtime')
def test_an_operation_without_a_second_derivative():
  keras_model = sequential(
    layers.Conv2D(2, 3),
    layers.Lambda(lambda x: tf.image.resize(x, (3, 3))),
    layers.GlobalAveragePooling2D(),
    dense(2),
    shape=(6, 6, 2),
  )
  spec = (IMAGE, INTEGER_Y)
  model = models.from_keras(keras_model, networks.CROSS_ENTROPY, spec)
  exact, first_order = (
    personalizations.Maml(1, 0.1, first_order) for first_order in (False, True)
  )
  message = 'ResizeBilinearGrad.*first_order=True'
  with pytest.raises(ValueError, match=message):
    tff_debias.build_per_fed_avg(model, exact)
  tff_debias.build_per_fed_avg(model, first_order)


def test_an_operation_without_a_derivative_is_named():
  keras_model = sequential(
    layers.Conv2D(2, 3),
    layers.Lambda(lambda x: tf.image.resize(x, (2, 2), 'area')),
    layers.Flatten(),
    dense(2),
    shape=(6, 6, 2),
  )
  model = models.from_keras(keras_model, MSE, (IMAGE, Y))
  with pytest.raises(ValueError, match='no gradient of .*ResizeArea'):
    tff_debias.build_fed_avg(model)


# The feature.


def features():
  """Networks, the layer that is named, and the function of the feature."""
  body = dense(4, activation='relu')
  yield sequential(body, dense(2), layers.Softmax()), None, body
  body = dense(4)
  yield sequential(body, dense(2, trainable=False)), None, body
  # The last layer with weights is inside of a nested model.
  body = dense(4, activation='relu')
  head = tf.keras.Sequential([layers.Input((4,)), layers.ReLU(), dense(2)])
  yield sequential(body, head), None, body
  first, second = dense(5, 'first'), dense(4, 'second', activation='tanh')
  inner = tf.keras.Sequential([layers.Input((3,)), first])
  keras_model = sequential(inner, second, dense(2, 'last'))
  yield keras_model, 'first', first
  yield keras_model, 'second', lambda x: second(first(x))
  yield keras_model, 'last', keras_model
  # Of two calls of a layer, the last one counts.
  x, twice = layers.Input((3,)), dense(3, 'twice')
  keras_model = tf.keras.Model(x, dense(2)(twice(twice(x))))
  yield keras_model, 'twice', lambda x: twice(twice(x))


def test_the_feature_is_the_input_of_the_last_layer_or_a_layers_output():
  x = inputs(VECTOR)
  for keras_model, name, expected in features():
    model = make(keras_model, None, name)
    found, right = run(model, x).feature, expected(x)
    np.testing.assert_allclose(found, right, atol=1e-6)
    assert model.output_spec.feature.shape.as_list() == [None, right.shape[1]]


def test_a_layer_that_is_not_there():
  keras_model = sequential(dense(4, 'body'), dense(2, 'head'))
  with pytest.raises(ValueError, match="no layer 'neck'.*are body, head"):
    make(keras_model, None, 'neck')


def test_a_subclassed_model_has_no_feature_but_a_named_one():
  model = make(networks.Declared)
  assert model.output_spec.feature is None
  with pytest.raises(ValueError, match='feature_layer'):
    personalizations.Proto(2).check_model(
      models.from_keras(networks.Declared, MSE, (VECTOR, INTEGER_Y))
    )


# What is refused.


class Counter(layers.Layer):
  """A layer with a weight that changes when it is called."""

  def build(self, shape):
    self.count = self.add_weight('count', (), trainable=False)

  def call(self, x):
    self.count.assign_add(1.0)
    return x


INTEGER_Y = tf.TensorSpec([None], tf.int32)
GROUP = 'trainable=False for that layer, or use GroupNormalization'


def stateful():
  x = layers.Input(batch_shape=(4, 3))
  state = layers.LSTM(4, stateful=True)(layers.Reshape((3, 1))(x))
  return tf.keras.Model(x, dense(2)(state))


@pytest.mark.parametrize(
  'build, advice',
  [
    (lambda: sequential(dense(2), layers.BatchNormalization()), GROUP),
    (lambda: sequential(Counter(), dense(2)), f"'counter.*/count:0'.*{GROUP}"),
    (stateful, 'stateful=False'),
    (lambda: sequential(layers.Flatten()), 'no trainable weight'),
    (lambda: sequential(dense(2, trainable=False)), 'no trainable weight'),
    (lambda: sequential(dense(2, 'it', kernel_constraint='non_neg')), 'it/ker'),
    (
      lambda: sequential(
        layers.LayerNormalization(gamma_constraint='non_neg'), dense(2)
      ),
      'gamma.*has a constraint.* Remove it',
    ),
    (
      lambda: sequential(layers.SpectralNormalization(dense(2))),
      'value of a tensor.*spectral_normalization',
    ),
  ],
)
def test_a_keras_model_that_is_refused(build, advice):
  with pytest.raises(ValueError, match=advice):
    make(build())


def test_a_saved_model_that_is_trained_is_refused():
  model = make(networks.Served(is_trained=True))
  weights = tf.nest.map_structure(tf.constant, model.initial_weights)
  with pytest.raises(ValueError, match='kernel:0.*cannot be trained here'):
    models.computation()(lambda: model.apply(weights, inputs(VECTOR), True)[0])


def test_arguments_of_a_wrong_type():
  keras_model = sequential(dense(2))
  for given in (3, lambda: 3):
    with pytest.raises(TypeError, match='function that builds one, got 3'):
      make(given)
  for loss in ('mse', None, tf.keras.losses.MeanSquaredError):
    with pytest.raises(TypeError, match='must be a function or a Keras loss'):
      models.from_keras(keras_model, loss, (VECTOR, Y))
  with pytest.raises(TypeError, match='must be a tff.learning.models.Func'):
    models.from_functional(keras_model)
  with pytest.raises(ValueError, match='incompatible with the layer'):
    models.from_keras(keras_model, MSE, (tf.TensorSpec([None, 5]), Y))
  loss = tf.keras.losses.MeanSquaredError(tf.keras.losses.Reduction.SUM)
  with pytest.raises(ValueError, match='mean over the batch.*SUM'):
    models.from_keras(keras_model, loss, (VECTOR, Y))
  with pytest.raises(ValueError, match='must be float32 arrays, got float64'):
    make(sequential(layers.Dense(2, dtype='float64')))


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
  with pytest.raises(ValueError, match='^input_spec must be a pair'):
    models.from_keras(sequential(dense(2)), MSE, spec)


def test_sample_weights_are_refused_by_name():
  for spec in (
    (VECTOR, Y, tf.TensorSpec([None])),
    {'x': VECTOR, 'y': Y, 'w': tf.TensorSpec([None])},
  ):
    with pytest.raises(ValueError, match='Sample weights are a part of y'):
      models.from_keras(sequential(dense(2)), MSE, spec)


# The loss.


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
