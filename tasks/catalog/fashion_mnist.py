"""Loads Fashion-MNIST, with network and settings published for CIFAR-10."""

from tasks import readers
from tasks.catalog import published
from tasks.catalog import task


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task, 60,000 training and 10,000 test images `[28, 28, 1]`.

  `data_dir` is as in `readers.load_images`, whose file is `fashion_mnist.npz`.
  """
  sets = readers.load_images('fashion_mnist', (28, 28, 1), 10, data_dir)
  return published.image_task(*sets, num_classes=10)
