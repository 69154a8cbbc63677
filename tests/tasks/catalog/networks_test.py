import numpy as np
import pytest
import tensorflow as tf

from tasks.catalog import networks


@pytest.mark.parametrize(
  'input_shape, num_outputs, num_weights',
  [((32, 32, 3), 10, 797_962), ((32, 32, 3), 5, 796_997)],
)
def test_cnn_has_the_published_number_of_weights(
  input_shape, num_outputs, num_weights
):
  assert networks.cnn(input_shape, num_outputs).count_params() == num_weights


def test_cnn_is_the_published_network():
  model = networks.cnn((28, 28, 1), 7)
  shapes = [tuple(w.shape) for w in model.get_weights()]
  assert shapes == [
    (5, 5, 1, 64), (64,), (5, 5, 64, 64), (64,),
    (1024, 384), (384,), (384, 192), (192,), (192, 7), (7,),
  ]  # fmt: skip
  x = tf.random.stateless_normal([2, 28, 28, 1], [0, 0])
  weights = model.get_weights()
  hidden = x
  for kernel, bias in zip(weights[:4:2], weights[1:4:2], strict=True):
    hidden = tf.nn.relu(tf.nn.conv2d(hidden, kernel, 1, 'VALID') + bias)
    hidden = tf.nn.max_pool2d(hidden, 2, 2, 'VALID')
  hidden = tf.reshape(hidden, [2, -1])
  for kernel, bias in zip(weights[4:8:2], weights[5:8:2], strict=True):
    hidden = tf.nn.relu(hidden @ kernel + bias)
  expected = hidden @ weights[8] + weights[9]
  np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_mlp_is_relu_layers_and_a_linear_one():
  model = networks.mlp((8, 8), (32, 16), 10)
  w1, b1, w2, b2, w3, b3 = model.get_weights()
  assert w1.shape == (64, 32) and w2.shape == (32, 16) and w3.shape == (16, 10)
  x = np.random.default_rng(0).random((5, 8, 8), np.float32)
  hidden = np.maximum(x.reshape(5, 64) @ w1 + b1, 0)
  feature = np.maximum(hidden @ w2 + b2, 0)
  np.testing.assert_allclose(model(x), feature @ w3 + b3, rtol=1e-4, atol=1e-5)


def test_every_call_makes_a_new_model():
  first, second = networks.mlp((2,), (3,), 1), networks.mlp((2,), (3,), 1)
  assert first.trainable_variables[0] is not second.trainable_variables[0]


@pytest.mark.parametrize(
  'num_outputs, num_weights', [(100, 1_514_792), (20, 1_506_712)]
)
def test_large_cnn_is_the_authors_network(num_outputs, num_weights):
  model = networks.large_cnn((84, 84, 3), num_outputs)
  assert model.count_params() == num_weights
  shapes = [tuple(w.shape) for w in model.get_weights()]
  assert shapes[::2] == [
    (5, 5, 3, 64), (5, 5, 64, 64), (5, 5, 64, 64),
    (64 * 7 * 7, 400), (400, 100), (100, num_outputs),
  ]  # fmt: skip
  x = tf.random.stateless_normal([2, 84, 84, 3], [0, 0])
  weights = model.get_weights()
  hidden = x
  for kernel, bias in zip(weights[:6:2], weights[1:6:2], strict=True):
    hidden = tf.nn.relu(tf.nn.conv2d(hidden, kernel, 1, 'VALID') + bias)
    hidden = tf.nn.max_pool2d(hidden, 2, 2, 'VALID')
  hidden = tf.reshape(hidden, [2, -1])
  for kernel, bias in zip(weights[6:10:2], weights[7:10:2], strict=True):
    hidden = tf.nn.relu(hidden @ kernel + bias)
  expected = hidden @ weights[10] + weights[11]
  np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
