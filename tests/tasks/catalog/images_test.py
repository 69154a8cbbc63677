import numpy as np
import pytest
import tensorflow as tf

from tasks.catalog import images


def random_images(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize('channels', [1, 3])
def test_scaling_gives_mean_0_and_deviation_1_in_training(channels):
  train = random_images((500, 12, 8, channels))
  # Channels that differ from each other.
  train[..., 0] //= 3
  test = random_images((50, 12, 8, channels), seed=1)
  scaling = images.scaling(*images.statistics(train))
  new_train, new_test = scaling(train).numpy(), scaling(test).numpy()
  scaled = train / 255.0
  mean, deviation = scaled.mean(axis=(0, 1, 2)), scaled.std(axis=(0, 1, 2))
  for new, old in ((new_train, train), (new_test, test)):
    assert new.dtype == np.float32
    np.testing.assert_allclose(
      new, (old / 255.0 - mean) / deviation, rtol=1e-4, atol=1e-5
    )
  exact = new_train.astype(float)
  np.testing.assert_allclose(exact.mean(axis=(0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(exact.std(axis=(0, 1, 2)), 1, atol=1e-5)


def crops(image, padding):
  """All that the augmentation may make of an image, by its definition."""
  height, width, channels = image.shape
  padded = np.zeros(
    (height + 2 * padding, width + 2 * padding, channels), np.uint8
  )
  padded[padding : padding + height, padding : padding + width] = image
  found = {}
  for down in range(2 * padding + 1):
    for right in range(2 * padding + 1):
      crop = padded[down : down + height, right : right + width]
      found[down, right, False] = crop
      found[down, right, True] = crop[:, ::-1]
  return found


@pytest.mark.parametrize(
  'shape, padding', [((28, 28, 1), 4), ((8, 10, 3), 4), ((5, 6, 1), 1)]
)
def test_augmentation_is_a_crop_of_the_padded_image_mirrored_or_not(
  shape, padding
):
  x = random_images((60, *shape))
  augment = images.random_crop_and_flip(padding)
  seen = []
  for seed in range(4):
    augmented = augment(x, [seed, 7])
    assert augmented.shape == x.shape and augmented.dtype == tf.uint8
    for image, result in zip(x, augmented.numpy(), strict=True):
      matches = [
        choice
        for choice, crop in crops(image, padding).items()
        if np.array_equal(crop, result)
      ]
      assert len(matches) == 1
      seen += matches
  # All offsets in both directions, and both ways round.
  for i, values in enumerate((range(2 * padding + 1),) * 2 + ((0, 1),)):
    counts = np.bincount(np.array(seen)[:, i].astype(int))
    assert len(counts) == len(values)
    expected = len(seen) / len(values)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_augmentation_is_decided_by_the_seed():
  x = random_images((20, 8, 8, 1))
  augment = images.random_crop_and_flip()
  first = augment(x, [1, 2])
  assert np.array_equal(first, augment(x, [1, 2]))
  assert np.array_equal(first, tf.function(augment)(x, tf.constant([1, 2])))
  assert not np.array_equal(first, augment(x, [2, 2]))
  assert not np.array_equal(first, augment(x, [1, 3]))


def test_statistics_of_many_images():
  # More than are summed at a time, and not a multiple.
  x = random_images((2503, 3, 5, 2))
  x[..., 0] //= 3
  mean, deviation = images.statistics(x)
  assert mean.dtype == deviation.dtype == np.float32
  np.testing.assert_allclose(mean, (x / 255).mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(deviation, (x / 255).std((0, 1, 2)), rtol=1e-6)


def jittered(image, order, factors):
  """An image of 0 to 1 after the three changes, by their definition."""
  for change in order:
    gray = image @ [0.299, 0.587, 0.114]
    other = {
      'brightness': np.zeros_like(image),
      'contrast': np.full_like(image, gray.mean()),
      'saturation': np.repeat(gray[..., None], 3, axis=-1),
    }[change]
    factor = factors[change]
    image = np.clip(factor * image + (1 - factor) * other, 0, 1)
  return image


def test_random_color_is_a_change_of_each_image_by_its_own_factors():
  names = ('brightness', 'contrast', 'saturation')
  x = random_images((60, 6, 7, 3))
  seed = [3, 4]
  result = images.random_color()(x, seed).numpy()
  assert result.dtype == np.uint8
  # What is drawn, as documented: the factors, then the order.
  drawn = tf.random.stateless_uniform([2, 3, 60, 1, 1, 1], seed)
  drawn = drawn.numpy()[..., 0, 0, 0]
  orders = set()
  for i in range(60):
    factors = dict(zip(names, 0.6 + 0.8 * drawn[0, :, i], strict=True))
    order = [names[j] for j in np.argsort(drawn[1, :, i])]
    orders.add(tuple(order))
    expected = 255 * jittered(x[i] / 255, order, factors)
    # Rounded.
    np.testing.assert_allclose(result[i], expected, atol=0.501)
  assert len(orders) == 6
  assert 0 <= drawn[0].min() < 0.1 and 0.9 < drawn[0].max() < 1
