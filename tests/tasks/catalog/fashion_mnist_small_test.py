from fashion_mnist_test import files  # noqa: F401
from fashion_mnist_test import scaled
import numpy as np

from tasks.catalog import fashion_mnist
from tasks.catalog import fashion_mnist_small


def test_every_2_by_2_pixels_are_their_mean(files):  # noqa: F811
  folder = str(files[0])
  full, small = fashion_mnist.load(folder), fashion_mnist_small.load(folder)
  for (x, y), (small_x, small_y) in (
    (full.train, small.train),
    (full.test, small.test),
  ):
    assert small_x.shape == (len(x), 14, 14, 1) and small_x.dtype == np.float32
    pixels = x[5, 6:8, 14:16]
    assert small_x[5, 3, 7] == pixels.mean(axis=(0, 1))
    np.testing.assert_allclose(
      scaled(small, small_x)[5, 3, 7],
      scaled(full, pixels[None]).mean(axis=(0, 1, 2)),
      rtol=1e-5,
    )
    np.testing.assert_array_equal(small_y, y)


def test_the_network_and_the_settings_are_smaller(files):  # noqa: F811
  task = fashion_mnist_small.load(str(files[0]))
  model = task.build_model(10)
  assert model.count_params() == 34_122
  # The published initial weights: Keras' biases are 0.
  assert all(weights.all() for weights in model.get_weights())
  assert model(task.test[0]).shape == (20, 10)
  defaults = fashion_mnist_small.defaults('scaf', 'proto')
  assert defaults['local_steps'] == 10
  # As published.
  assert (defaults['num_clients'], defaults['clients_per_round']) == (100, 10)
