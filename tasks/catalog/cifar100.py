"""Loads CIFAR-100 as in the published experiment.

The authors' program treats it like CIFAR-10, but was run on CIFAR-10 only. That
a client holds 20 of the 100 classes is our assumption.
"""

import functools

from tasks.catalog import published
from tasks.catalog import task
from tasks.readers import cifar

_VARIANT = cifar.Variant(
  title='CIFAR-100',
  tfds_name='cifar100',
  archive='cifar-100-binary.tar.gz',
  md5='03b5dce01913d631647c71ecec9e9cb8',
  folder='cifar-100-binary',
  train={'train.bin': 50_000},
  test={'test.bin': 10_000},
  # The coarse label and the fine label.
  num_labels=2,
  num_classes=100,
)

defaults = functools.partial(published.defaults, classes_per_client=20)


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task: 50,000 and 10,000 images of the 100 fine classes."""
  train, test = cifar.load(_VARIANT, data_dir)
  return published.image_task(train, test, _VARIANT.num_classes)
