"""Loads CIFAR-10 as in the published experiment."""

import dataclasses

from tasks import readers
from tasks.catalog import published
from tasks.catalog import task

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
  """Loads the task, 50,000 training and 10,000 test images `[32, 32, 3]`.

  `data_dir` is as in `readers.load_images`, whose file is `cifar10.npz`.
  """
  sets = readers.load_images('cifar10', (32, 32, 3), 10, data_dir)
  return dataclasses.replace(
    published.image_task(*sets, num_classes=10), targets=_TARGETS
  )
