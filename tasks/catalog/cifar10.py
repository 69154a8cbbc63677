"""Loads CIFAR-10 as in the published experiment."""

from tasks import readers
from tasks.catalog import published
from tasks.catalog import task


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task, 50,000 training and 10,000 test images `[32, 32, 3]`.

  `data_dir` is as in `readers.load_images`, whose file is `cifar10.npz`.
  """
  sets = readers.load_images('cifar10', (32, 32, 3), 10, data_dir)
  return published.image_task(*sets, num_classes=10)
