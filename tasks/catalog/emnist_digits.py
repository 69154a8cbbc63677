"""Loads TFF's federated EMNIST, digits only; otherwise like `emnist`."""

from tasks.catalog import emnist
from tasks.catalog import task


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task; see `emnist.load`.

  Args:
    data_dir: As there.

  Returns:
    The `Task` of 10 classes.

  Raises:
    DataError: As there.
  """
  return emnist.load(data_dir, only_digits=True)
