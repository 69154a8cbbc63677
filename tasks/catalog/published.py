"""Makes the image tasks of the published experiment (Acar et al., 2021)."""

from collections.abc import Callable
import math
from typing import Any

import tensorflow as tf

from tasks.catalog import images
from tasks.catalog import networks
from tasks.catalog import task


def defaults(
  correction: str, personalization: str, **others: Any
) -> dict[str, Any]:
  """The defaults of a task: CIFAR-10's as published, and others instead."""
  is_scaf = correction == 'scaf'
  return {
    'rounds': 1000,
    'partition': 'acid',
    'num_clients': 100,
    'clients_per_round': 10,
    'classes_per_client': 5,
    'concentration': 0.3,
    'local_steps': 50,
    'batch_size': 50,
    'learning_rate': 0.1,
    'learning_rate_decay': 0.997,
    'weight_decay': 1e-3,
    'max_grad_norm': math.inf if personalization == 'none' else 10.0,
    'alpha': 1e-1 if personalization == 'proto' else 1e-2,
    'mu': 1e-2,
    'maml_steps': 1 if is_scaf else 5,
    'maml_learning_rate': 1e-1 if is_scaf else 1e-2,
    'maml_first_order': False,
    'evaluation_clients': 0,
    'rounds_per_evaluation': 10,
    **others,
  }


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
