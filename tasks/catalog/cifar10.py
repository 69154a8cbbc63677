"""Loads CIFAR-10 as in the published experiment."""

import dataclasses

from tasks.catalog import published
from tasks.catalog import task
from tasks.readers import cifar

_VARIANT = cifar.Variant(
  title='CIFAR-10',
  tfds_name='cifar10',
  archive='cifar-10-binary.tar.gz',
  md5='c32a1d4ab5d03f1284b67883e8d87530',
  folder='cifar-10-batches-bin',
  train={f'data_batch_{i}.bin': 10_000 for i in range(1, 6)},
  test={'test_batch.bin': 10_000},
  num_labels=1,
  num_classes=10,
)


# 0.75 was fixed before the first run of more than ten rounds. The others were
# fixed when one run had 60 rounds (Per-FedAvg with prototypes, at 0.798) and
# none had more.
_TARGETS = {
  (partition, personalization): (0.75, 0.80, 0.84)
  for partition in ('acid', 'alid')
  for personalization in ('maml', 'proto')
}

defaults = published.defaults


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task, 50,000 training and 10,000 test images `[32, 32, 3]`."""
  train, test = cifar.load(_VARIANT, data_dir)
  return dataclasses.replace(
    published.image_task(train, test, _VARIANT.num_classes), targets=_TARGETS
  )
