"""Prepares images as the published experiment does."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tasks import task


def normalize(
  train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Normalizes by the mean and the deviation of each channel in training.

  Args:
    train: uint8 `[images, height, width, channels]`.
    test: uint8 likewise.

  Returns:
    The training and the test images, float32 `[images, height, width,
    channels]`, and what a black pixel has become, float32 `[channels]`.
  """
  train, test = train / np.float32(255), test / np.float32(255)
  # Image by image: float32 is too short to sum a whole set, and a float64 copy
  # of it too large.
  mean = train.mean(axis=(1, 2)).mean(axis=0, dtype=np.float64)
  square = np.einsum('nhwc,nhwc->nc', train, train) / train[0, ..., 0].size
  deviation = np.sqrt(square.mean(axis=0, dtype=np.float64) - mean**2)
  mean, deviation = mean.astype(np.float32), deviation.astype(np.float32)
  for images in (train, test):
    images -= mean
    images /= deviation
  return train, test, -mean / deviation


def scaling(
  raw: np.ndarray, normalized: np.ndarray, black: np.ndarray
) -> task.Scaling:
  """What `normalize` did to images, for a model that takes raw ones.

  Args:
    raw: uint8 `[images, height, width, channels]`, of which no channel may be
      black in all images.
    normalized: What `normalize` made of them.
    black: What it made of a black pixel.

  Returns:
    The scale and the offset of each channel.
  """
  # Normalizing keeps the order, so that the brightest pixel stays the
  # brightest.
  brightest = [images.max(axis=(0, 1, 2)) for images in (raw, normalized)]
  return task.Scaling((brightest[1] - black) / brightest[0], black)


def random_crop_and_flip(
  black: np.ndarray, padding: int = 4
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """The augmentation of the published experiment, a batch at a time.

  An image is padded with black on all sides, cropped to its size at a random
  place, and mirrored or not, left to right.

  Args:
    black: float32 `[channels]`, the value of the padding.
    padding: The number of pixels on each side.

  Returns:
    A function of float32 `[b, height, width, channels]` (all but b static) and
    an int32 seed `[2]` that gives float32 of the same shape, and always the
    same for the same seed.
  """

  def augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    height, width = images.shape[1:3]
    drawn = tf.random.stateless_uniform([3, tf.shape(images)[0]], seed)
    down, right = tf.unstack(tf.floor(drawn[:2] * (2 * padding + 1)) - padding)
    mirrored = tf.floor(drawn[2] * 2)
    # One operation for the batch, many times faster than image by image. Input
    # column = a · output column + b, and likewise the row.
    zeros = tf.zeros_like(down)
    transforms = [1 - 2 * mirrored, zeros, right + mirrored * (width - 1)]
    transforms += [zeros, zeros + 1, down, zeros, zeros]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
      images=images - black,
      transforms=tf.stack(transforms, axis=1),
      output_shape=[height, width],
      fill_value=0.0,
      interpolation='NEAREST',
      fill_mode='CONSTANT',
    )
    return tf.ensure_shape(moved + black, images.shape)

  return augment
