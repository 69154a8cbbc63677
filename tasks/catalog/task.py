"""What a task is; the modules of `tasks.catalog` each load one."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tasks.runs import settings as settings_lib

ClientData = tff.simulation.datasets.ClientData


class DataError(ValueError):
  """The data of a task are missing or damaged: which, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A classification problem: its data, its network and what suits it.

  The data are raw, as the data set has them, and the network scales them: so
  bytes are kept and sent as bytes, and a model that is saved takes raw input.

  Attributes:
    train: The training set `(x, y)`: `[examples, ...]`, and the classes, int32
      `[examples]`, from 0. `None` if there is only the `natural` partition.
    test: The test set likewise.
    num_classes: The number of classes.
    build_model: Makes a new Keras model that gives so many logits for inputs
      `[b, ...]`. Keras' global seed decides the weights.
    augment: `None`, or a pure TensorFlow function of training inputs `[b, ...]`
      and an int32 seed `[2]`, which gives inputs of the same shape and dtype.
    defaults: For the settings that are given, `rounds`, and every setting that
      is `None` by default in `tasks.runs.settings.Settings` (but for the names of
      things).
    natural: `None`, or the training and the test data by the users of the data
      set, examples as in `tff_debias.partitions`.
  """

  train: tuple[np.ndarray, np.ndarray] | None
  test: tuple[np.ndarray, np.ndarray] | None
  num_classes: int
  build_model: Callable[[int], tf.keras.Model]
  augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None
  defaults: Callable[[settings_lib.Settings], Mapping[str, Any]]
  natural: tuple[ClientData, ClientData] | None = None
