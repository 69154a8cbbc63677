"""What a task is, and which there are.

A module of this package that has a function `load(data_dir)` is a task, under
the name of the module: a new file is a new task. Importing this module does not
import TensorFlow, so that the names are known at once.
"""

from collections.abc import Callable
import dataclasses
import importlib
import pathlib
import re
import typing
from typing import Optional

import numpy as np

if typing.TYPE_CHECKING:
  import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Defaults:
  """The settings that suit a task where the user gives none.

  Attributes:
    num_devices: m.
    devices_per_round: The participants of a round, p.
    classes_per_device: n, of ACID and ALID.
    rounds: T.
    local_steps: K.
    batch_size: The examples in a support batch, and in a query batch.
    learning_rate: β.
    learning_rate_decay: The factor of β from one round to the next.
    weight_decay: wd.
  """

  num_devices: int
  devices_per_round: int
  classes_per_device: int
  rounds: int
  local_steps: int
  batch_size: int
  learning_rate: float
  learning_rate_decay: float
  weight_decay: float


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A classification problem: data, network and settings.

  Attributes:
    train_x: float32 `[examples, ...]`, ready for the network.
    train_y: int32 `[examples]`, the classes, from 0.
    test_x: Like `train_x`.
    test_y: Like `train_y`.
    num_classes: The number of classes.
    build_model: Makes a new Keras model that gives so many logits for a batch
      `[b, ...]`; initialized by Keras' global seed.
    augment: `None`, or a pure TensorFlow function of training inputs `[b, ...]`
      and an int32 seed `[2]` that gives inputs of the same shape.
    defaults: The settings where the user gives none.
  """

  train_x: np.ndarray
  train_y: np.ndarray
  test_x: np.ndarray
  test_y: np.ndarray
  num_classes: int
  build_model: Callable[[int], 'tf.keras.Model']
  augment: Optional[Callable[['tf.Tensor', 'tf.Tensor'], 'tf.Tensor']]
  defaults: Defaults


def names() -> list[str]:
  """The names of all tasks, sorted."""
  folder = pathlib.Path(__file__).parent
  return sorted(
    path.stem
    for path in folder.glob('*.py')
    if re.search(r'^def load\(data_dir\b', path.read_text('utf-8'), re.M)
  )


def load_task(name: str, data_dir: str | None = None) -> Task:
  """Loads a task.

  Args:
    name: One of `names()`.
    data_dir: The folder of the task's files; by default where the task looks
      for itself.

  Returns:
    The `Task`.

  Raises:
    ValueError: If there is no such task, or its files are damaged.
    OSError: If its files are missing.
  """
  if name not in names():
    raise ValueError(f'There is no task {name!r}; there are {names()}.')
  return importlib.import_module(f'tasks.{name}').load(data_dir)
