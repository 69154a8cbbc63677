"""Loads TFF's federated EMNIST, digits only; otherwise like `emnist`."""

from tasks.catalog import emnist
from tasks.catalog import task


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task of 10 classes, see `emnist.load`."""
  return emnist.load(data_dir, only_digits=True)
