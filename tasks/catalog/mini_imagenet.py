"""Loads mini-ImageNet as in the published experiment.

The network and the augmentation are those of the authors' program, which was
run on CIFAR-10 only. That a client holds 20 of the 100 classes is our
assumption.
"""

import functools

import tensorflow as tf

from tasks import readers
from tasks.catalog import images
from tasks.catalog import networks
from tasks.catalog import published
from tasks.catalog import task

#: The authors' network: 1,514,792 weights for 84×84×3 and 100 outputs.
cnn = functools.partial(
  networks.cnn, num_convolutions=3, hidden_sizes=(400, 100)
)

_crop_and_flip = images.random_crop_and_flip(padding=8)
_change_color = images.random_color()


def augment(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Crops and mirrors images, then changes brightness, contrast, saturation."""
  seeds = tf.random.experimental.stateless_split(seed, 2)
  return _change_color(_crop_and_flip(x, seeds[0]), seeds[1])


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task, images `[84, 84, 3]` of 100 classes.

  `data_dir` is as in `readers.load_images`, whose file is `mini_imagenet.npz`;
  tensorflow-datasets does not have these data. The authors take 500 images of
  each class for training and 100 for the test, drawn anew each time.
  """
  sets = readers.load_images('mini_imagenet', (84, 84, 3), 100, data_dir)
  return published.image_task(*sets, 100, cnn, augment)
