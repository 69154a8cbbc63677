import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import networks
from tff_debias import models

layers = tf.keras.layers
MSE = networks.MSE
VECTOR = networks.VECTOR
Y = networks.Y
dense = networks.dense
sequential = networks.sequential
inputs = networks.inputs
make = networks.make
run = networks.run


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
        lambda: collections.OrderedDict(a=tf.keras.metrics.MeanSquaredError())
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


def doubled_zeros(x):
  return tf.where(x == 0.0, 2.0, x)


class Share(tf.keras.metrics.Mean):
  """The share of labels that are 1, by a comparison of tensors."""

  def update_state(self, y_true, y_pred, sample_weight=None):
    return super().update_state(tf.cast(y_true[:, 0] == 1.0, tf.float32))


@pytest.mark.usefixtures('runtime')
def test_a_functional_model_that_tff_makes_of_keras():
  keras_model = sequential(
    layers.Lambda(doubled_zeros), dense(4, activation='tanh'), dense(2)
  )
  x, y = inputs(VECTOR), np.array([[1, 2], [0, 1], [1, 0], [1, 1]], np.float32)
  x[0] = 0
  expected = keras_model(x).numpy()
  model = models.from_functional(
    tff.learning.models.functional_model_from_keras(
      keras_model, MSE, (VECTOR, Y), collections.OrderedDict(share=Share)
    )
  )

  @models.computation()
  def predict():
    weights = tf.nest.map_structure(tf.constant, model.initial_weights)
    predictions = model.apply(weights, tf.constant(x), False).predictions
    state = model.metrics.update(
      model.metrics.initialize(),
      tf.constant(y),
      tff.learning.models.BatchOutput(tf.constant(0.0), predictions, 4),
    )
    return predictions, model.metrics.finalize(state)['share']

  predictions, share = predict()
  np.testing.assert_allclose(predictions, expected, atol=1e-6)
  np.testing.assert_allclose(share, 0.75)


def test_derivatives_of_any_order_are_in_one_graph():
  model = models.from_functional(functional_model())
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
  # computed again for each of them.
  graph = products.get_concrete_function(tf.TensorSpec([3, 4])).graph
  kinds = {op.type for op in graph.get_operations()}
  assert 'MatMul' in kinds
  assert not {kind for kind in kinds if kind.endswith('PartitionedCall')}
