"""Makes the image tasks of the published experiment (Acar et al., 2021)."""

from collections.abc import Callable

import tensorflow as tf

from tasks.catalog import images
from tasks.catalog import networks
from tasks.catalog import task


def image_task(
  train: task.Examples,
  test: task.Examples,
  num_classes: int,
  network: Callable[..., tf.keras.Model] = networks.cnn,
  augment: images.Augmentation | None = None,
) -> task.Task:
  """A task with the published treatment of small images, uint8.

  Images are normalized by the mean and the deviation of the training set. By
  default training images are padded by 4, cropped and mirrored at random.
  `network` takes the shape of an image, the number of outputs, and the layer
  that normalizes.
  """
  statistics = images.statistics(train[0])
  return task.Task(
    train=train,
    test=test,
    num_classes=num_classes,
    build_model=lambda num_outputs: network(
      train[0].shape[1:], num_outputs, images.scaling(*statistics)
    ),
    augment=augment or images.random_crop_and_flip(),
  )
