"""Loads images as in the published experiment (Acar et al., 2021).

The authors' program treats CIFAR-100 like CIFAR-10, and has a network and an
augmentation for mini-ImageNet. It was run on CIFAR-10 only: that a client holds
20 of 100 classes is our assumption, and Fashion-MNIST is our addition.
"""

import functools

import numpy as np
import tensorflow as tf

from tasks import catalog
from tasks import readers
from tasks.catalog import images
from tasks.catalog import networks
from tasks.catalog import task

_SHAPES = {
  'cifar10': (32, 32, 3),
  'cifar100': (32, 32, 3),
  'fashion_mnist': (28, 28, 1),
  # 500 and 100 images of each class, which the authors draw anew each time.
  'mini_imagenet': (84, 84, 3),
}

#: The authors' network for mini-ImageNet: 1,514,792 weights for 100 outputs.
mini_imagenet_cnn = functools.partial(
  networks.cnn, num_convolutions=3, hidden_sizes=(400, 100)
)
# Fashion-MNIST for a laptop has a network of 34,122 weights.
_mlp = functools.partial(
  networks.mlp, hidden_sizes=(128, 64), has_published_weights=True
)


def load(data_dir: str | None, name: str) -> task.Task:
  """Loads a task of images, uint8.

  Images are normalized by the mean and the deviation of the training set. In
  training they are padded by 4, cropped and mirrored at random; those of
  mini-ImageNet are padded by 8, and also change their colors.
  `fashion_mnist_small` has the mean of each 2×2 pixels, float32, and no
  augmentation: a tenth of the work.

  `data_dir` is as in `readers.load_images`.
  """
  is_small = name == 'fashion_mnist_small'
  of = 'fashion_mnist' if is_small else name
  shape, num_classes = _SHAPES[of], catalog.TASKS[name].classes or 0
  train, test = readers.load_images(of, shape, num_classes, data_dir)
  statistics = images.statistics(train[0])
  network = networks.cnn
  augment: images.Augmentation | None = images.random_crop_and_flip()
  if name == 'mini_imagenet':
    network, augment = mini_imagenet_cnn, augment_mini_imagenet
  elif is_small:
    network, augment, shape = _mlp, None, (14, 14, 1)
    train, test = (_halve(train[0]), train[1]), (_halve(test[0]), test[1])
  return task.Task(
    train=train,
    test=test,
    num_classes=num_classes,
    build_model=lambda num_outputs: network(
      shape, num_outputs=num_outputs, scaling=images.scaling(*statistics)
    ),
    augment=augment,
  )


def augment_mini_imagenet(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Crops and mirrors images, then changes brightness, contrast, saturation."""
  seeds = tf.random.experimental.stateless_split(seed, 2)
  moved = images.random_crop_and_flip(padding=8)(x, seeds[0])
  return images.random_color()(moved, seeds[1])


def _halve(x: np.ndarray) -> np.ndarray:
  return x.reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4), dtype=np.float32)
