import numpy as np
import pytest
import tensorflow as tf

from models import networks
from tff_debias import models

layers = tf.keras.layers


def dropped(model, seed, calls=1, training=True):
  """The predictions of some calls in one graph."""
  x = np.ones((20, 3), np.float32)

  @tf.function
  def compute(seed):
    seeded = model.with_seed(seed)
    return [
      seeded.apply(model.initial_weights, x, training).predictions
      for _ in range(calls)
    ]

  return [p.numpy() for p in compute(tf.constant(seed, tf.int32))]


def dropout_model(num_layers=1):
  stack = [layers.Dropout(0.5, seed=7) for _ in range(num_layers)]
  identity = layers.Dense(3, kernel_initializer='identity')
  return models.from_keras(
    networks.sequential(*stack, identity),
    networks.MSE,
    (networks.VECTOR, networks.VECTOR),
  )


def test_a_seed_decides():
  model = dropout_model()
  assert model.is_random
  first, second = dropped(model, [1, 2], calls=2)
  assert set(np.unique(first)) == {0, 2}
  assert np.any(first != second)
  np.testing.assert_array_equal(dropped(model, [1, 2], calls=2)[1], second)
  for other in ([1, 3], [2, 2], [0, 0]):
    assert np.any(dropped(model, other)[0] != first)
  np.testing.assert_array_equal(dropped(model, [1, 2], training=False)[0], 1)


def test_each_layer_draws_its_own_numbers():
  (twice,) = dropped(dropout_model(2), [1, 2])
  # One mask used twice would let a half pass and not a quarter.
  assert set(np.unique(twice)) == {0, 4}
  assert 0.1 < np.mean(twice > 0) < 0.4


def test_numbers_are_folded_in():
  model = dropout_model()
  assert model.fold_in(3) is model

  @tf.function
  def compute(seed, number):
    x = np.ones((20, 3), np.float32)
    seeded = model.with_seed(seed).fold_in(number)
    return seeded.apply(model.initial_weights, x, True).predictions

  seed = tf.constant([1, 2])
  results = [compute(seed, tf.constant(n)).numpy() for n in (0, 1, 0)]
  assert np.any(results[0] != results[1])
  np.testing.assert_array_equal(results[0], results[2])


def test_a_model_without_randomness_takes_no_seed():
  model = networks.make(networks.sequential(networks.dense(2)))
  assert not model.is_random
  assert model.with_seed(tf.constant([1, 2])) is model


class Noisy(layers.Layer):
  """A layer that draws numbers without the generator of Keras."""

  def call(self, x, training=False):
    return x + tf.random.normal(tf.shape(x)) if training else x


def test_numbers_that_no_seed_decides_are_refused():
  with pytest.raises(ValueError, match='RandomStandardNormal.*takes no seed'):
    networks.make(networks.sequential(Noisy(), networks.dense(2)))


def test_the_random_layers_of_others_stay_as_they_are():
  model = dropout_model()
  dropped(model, [1, 2])
  layer = layers.Dropout(0.5)
  first, second = (layer(np.ones([9, 9]), training=True) for _ in range(2))
  assert np.any(first != second)
