"""Loads CIFAR-100 as in the published experiment.

The authors' program treats it like CIFAR-10, but was run on CIFAR-10 only. That
a client holds 20 of the 100 classes is our assumption.
"""

from tasks import readers
from tasks.catalog import published
from tasks.catalog import task


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task: 50,000 and 10,000 images of the 100 fine classes.

  `data_dir` is as in `readers.load_images`, whose file is `cifar100.npz`.
  """
  sets = readers.load_images('cifar100', (32, 32, 3), 100, data_dir)
  return published.image_task(*sets, num_classes=100)
