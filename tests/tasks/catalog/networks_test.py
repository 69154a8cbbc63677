import numpy as np
import pytest
import tensorflow as tf

from tasks.catalog import networks
from tasks.catalog import published


@pytest.mark.parametrize(
  'cnn, input_shape, num_outputs, num_weights, dense_shapes',
  [
    (
      networks.cnn,
      (32, 32, 3),
      10,
      797_962,
      [(64 * 5 * 5, 384), (384, 192), (192, 10)],
    ),
    (
      published.mini_imagenet_cnn,
      (84, 84, 3),
      100,
      1_514_792,
      [(64 * 7 * 7, 400), (400, 100), (100, 100)],
    ),
  ],
)
def test_cnn_is_the_published_network(
  cnn, input_shape, num_outputs, num_weights, dense_shapes
):
  model = cnn(input_shape, num_outputs)
  assert model.count_params() == num_weights
  weights = model.get_weights()
  layers = list(zip(weights[::2], weights[1::2], strict=True))
  assert [kernel.shape for kernel, _ in layers[-3:]] == dense_shapes
  hidden = x = tf.random.stateless_normal([2, *input_shape], [0, 0])
  for kernel, bias in layers[:-3]:
    assert kernel.shape[:2] == (5, 5) and kernel.shape[3] == 64
    hidden = tf.nn.relu(tf.nn.conv2d(hidden, kernel, 1, 'VALID') + bias)
    hidden = tf.nn.max_pool2d(hidden, 2, 2, 'VALID')
  hidden = tf.reshape(hidden, [2, -1])
  for kernel, bias in layers[-3:-1]:
    hidden = tf.nn.relu(hidden @ kernel + bias)
  expected = hidden @ weights[-2] + weights[-1]
  np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_mlp_is_relu_layers_and_a_linear_one():
  model = networks.mlp((8, 8), (32, 16), 10)
  w1, b1, w2, b2, w3, b3 = model.get_weights()
  assert w1.shape == (64, 32) and w2.shape == (32, 16) and w3.shape == (16, 10)
  x = np.random.default_rng(0).random((5, 8, 8), np.float32)
  hidden = np.maximum(x.reshape(5, 64) @ w1 + b1, 0)
  feature = np.maximum(hidden @ w2 + b2, 0)
  np.testing.assert_allclose(model(x), feature @ w3 + b3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'build, input_shape',
  [
    (networks.cnn, (32, 32, 3)),
    (published.mini_imagenet_cnn, (84, 84, 3)),
    (
      lambda shape, outputs: networks.mlp(
        shape, (128, 64), outputs, has_published_weights=True
      ),
      (14, 14, 1),
    ),
  ],
)
def test_initial_weights_are_distributed_as_in_pytorch(build, input_shape):
  def weights(seed):
    tf.keras.utils.set_random_seed(seed)
    return build(input_shape, 10).get_weights()

  first = weights(3)
  normalized = []
  for kernel, bias in zip(first[::2], first[1::2], strict=True):
    # PyTorch: the bound of both is one over the root of the kernel's fan-in.
    fan_in = np.prod(kernel.shape[:-1])
    normalized += [kernel.ravel() * fan_in**0.5, bias * fan_in**0.5]
  for part in normalized:
    # A uniform variable in ±1 has the mean 0 and the deviation 1/√3.
    error = len(part) ** -0.5
    assert np.abs(part).max() <= 1 + 1e-6
    assert np.abs(part).max() > 1 - 10 * error**2
    assert abs(part.mean()) < 4 * error / 3**0.5
    assert part.std() == pytest.approx(3**-0.5, abs=1.5 * error)
  # The draws are independent of each other: kernel and bias, layer and layer.
  firsts = [tuple(part[:10]) for part in normalized]
  assert len(set(firsts)) == len(firsts)
  for one, again, other in zip(first, weights(3), weights(4), strict=True):
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
