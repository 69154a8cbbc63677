"""Scales and augments images as the published experiment does."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import tensorflow as tf

Augmentation: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def scaling(
  mean: np.ndarray, deviation: np.ndarray
) -> tf.keras.layers.Rescaling:
  """A new layer that normalizes pixels from 0 to 255 by `statistics`."""
  return tf.keras.layers.Rescaling(
    (1 / (255 * deviation)).tolist(),
    (-mean / deviation).tolist(),
    name='scaling',
  )


def statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The mean and the deviation of each channel of bytes, scaled to 0 to 1."""
  # Some images at a time. A sum of a whole set in float32 would be inexact, and
  # a copy of the set in float64 too large.
  sums = np.zeros((2, images.shape[-1]))
  for start in range(0, len(images), 1000):
    part = images[start : start + 1000] / np.float32(255)
    sums[0] += part.mean(axis=(1, 2)).sum(axis=0, dtype=np.float64)
    square = np.einsum('nhwc,nhwc->nc', part, part) / part[0, ..., 0].size
    sums[1] += square.sum(axis=0, dtype=np.float64)
  mean, square = sums / len(images)
  deviation = np.sqrt(square - mean**2)
  return mean.astype(np.float32), deviation.astype(np.float32)


def random_crop_and_flip(padding: int = 4) -> Augmentation:
  """The augmentation of the published experiment, a batch at a time.

  An image is padded with black on all sides, cropped to its size at a random
  place, and mirrored or not, left to right. The function takes images `[b,
  height, width, channels]` (all but b static), and an int32 seed `[2]`.
  """

  def augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    height, width = images.shape[1:3]
    drawn = tf.random.stateless_uniform([3, tf.shape(images)[0]], seed)
    # The place of the upper left corner in the padded image.
    top, left = tf.unstack(tf.cast(drawn[:2] * (2 * padding + 1), tf.int32))
    rows = top[:, None] + tf.range(height)
    columns = left[:, None] + tf.range(width)
    is_mirrored = drawn[2, :, None] >= 0.5
    columns = tf.where(is_mirrored, columns[:, ::-1], columns)
    # A batch takes two gathers, which is many times faster than operations for
    # each image, and three times as fast as ImageProjectiveTransformV3.
    around = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
    moved = tf.gather(tf.pad(images, around), rows, axis=1, batch_dims=1)
    moved = tf.gather(moved, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(moved, images.shape)

  return augment


def random_color(strength: float = 0.4) -> Augmentation:
  """Changes brightness, contrast and saturation, each image in its own way.

  The authors do this for mini-ImageNet (`torchvision`'s `ColorJitter`). The
  three changes come in a random order. Each takes another image (black, the
  mean gray, or the image in gray) and makes other + factor · (image - other),
  cut off below black and above white. The factor is between 1 - `strength` and
  1 + `strength`. (ColorJitter rounds pixels to bytes after each change; here
  they are rounded after the last.) The function takes uint8 images in red,
  green and blue.
  """

  def augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    drawn = tf.random.stateless_uniform(
      [2, 3, tf.shape(images)[0], 1, 1, 1], seed
    )
    factors = 1 + strength * (2 * drawn[0] - 1)
    order = tf.argsort(drawn[1], axis=0)
    pixels = tf.cast(images, tf.float32)
    for change in tf.unstack(order):
      gray = tf.tensordot(pixels, [0.299, 0.587, 0.114], 1)[..., None]
      mean_gray = tf.reduce_mean(gray, axis=(1, 2), keepdims=True)
      other = tf.where(change == 0, 0.0, tf.where(change == 1, mean_gray, gray))
      factor = tf.where(
        change == 0, factors[0], tf.where(change == 1, factors[1], factors[2])
      )
      pixels = tf.clip_by_value(other + factor * (pixels - other), 0, 255)
    return tf.ensure_shape(tf.cast(tf.round(pixels), tf.uint8), images.shape)

  return augment
