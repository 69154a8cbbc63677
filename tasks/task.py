"""What a task is; the modules of `tasks.catalog` each load one."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tasks import settings as settings_lib

ClientData = tff.simulation.datasets.ClientData


class DataError(ValueError):
  """The data of a task are missing or damaged: which, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
  """What raw input, as the data set has it, is to the network.

  The network's input is `scale * raw + offset`.

  Attributes:
    scale: A number, or one for each channel, the last dimension.
    offset: Likewise.
  """

  scale: float | np.ndarray
  offset: float | np.ndarray = 0.0

  def __call__(self, raw: tf.Tensor) -> tf.Tensor:
    """The network's input, float32, of raw input of any number type."""
    return tf.cast(raw, tf.float32) * self.scale + self.offset

  def layer(self) -> tf.keras.layers.Layer:
    """A new Keras layer that scales raw input."""
    scale, offset = (
      np.asarray(value).tolist() for value in (self.scale, self.offset)
    )
    return tf.keras.layers.Rescaling(scale, offset, name='scaling')

  def raw(self, x: np.ndarray) -> np.ndarray:
    """The raw input, float32, of which the network's input `x` was made."""
    return ((x - self.offset) / self.scale).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A classification problem: its data, its network and what suits it.

  Attributes:
    train: The training set `(x, y)`: `[examples, ...]`, and the classes, int32
      `[examples]`, from 0. `None` if there is only the `natural` partition.
    test: The test set likewise.
    num_classes: The number of classes.
    build_model: Makes a new Keras model that gives so many logits for inputs
      `[b, ...]`. Keras' global seed decides the weights.
    augment: `None`, or a pure TensorFlow function of training inputs `[b, ...]`
      and an int32 seed `[2]`, which gives inputs of the same shape.
    defaults: For the settings that are given, `rounds`, and every setting that
      is `None` by default in `tasks.settings.Settings` (but for the names of
      things).
    prepare: `None` if `x` is ready for the network. Otherwise a pure TensorFlow
      function that makes inputs `[b, ...]` of so many elements of `x`; a device
      does it when it reads its data, which are kept and sent as they are: bytes
      take a quarter of the room and the time.
    natural: `None`, or the training and the test data by the users of the data
      set, examples as in `tff_debias.partitions`, ready for the network.
    scaling: What raw input is to the network; `None` if the task does not say,
      and no personalized model can be exported.
  """

  train: tuple[np.ndarray, np.ndarray] | None
  test: tuple[np.ndarray, np.ndarray] | None
  num_classes: int
  build_model: Callable[[int], tf.keras.Model]
  augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None
  defaults: Callable[[settings_lib.Settings], Mapping[str, Any]]
  prepare: Callable[[tf.Tensor], tf.Tensor] | None = None
  natural: tuple[ClientData, ClientData] | None = None
  scaling: Scaling | None = None
