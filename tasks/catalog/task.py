"""Defines what a task is: data and a network."""

from collections.abc import Callable
import dataclasses
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

ClientData: TypeAlias = tff.simulation.datasets.ClientData
#: Inputs `[n, ...]` and classes, int32 `[n]`.
Examples: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A classification problem: its data, its network and what suits them.

  The data are raw, as the data set has them, and the network scales them. So
  bytes are kept and sent as bytes, and a saved model takes raw input.

  Attributes:
    num_classes: The number of classes.
    build_model: A function of a number n. It makes a new Keras model from
      inputs `[b, ...]` to n logits. Keras' global seed decides the weights.
    train: The training set, with classes from 0. `None` if there is only the
      `natural` partition.
    test: The test set, or `None` as well.
    augment: `None`, or a pure TensorFlow function of training inputs `[b, ...]`
      and an int32 seed `[2]`. It gives inputs of the same shape and dtype.
    natural: `None`, or the training and the test data by the users of the data
      set, examples as in `tff_debias.partitions`.
  """

  num_classes: int
  build_model: Callable[[int], tf.keras.Model]
  train: Examples | None = None
  test: Examples | None = None
  augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None
  natural: tuple[ClientData, ClientData] | None = None
