"""The networks and random data that the cases of the benchmark share."""

import collections
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tasks.benchmarks import bare
from tasks.catalog import networks
from tasks.runs import pipeline
import tff_debias


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """A network, ours and for the bare loop, and random data: time counts."""

  input_shape: Sequence[int]
  input_dtype: type[np.generic]
  build_model: Callable[[], tf.keras.Model]
  forward: bare.Forward

  @property
  def input_spec(self) -> Any:
    """The spec of a batch."""
    return self.examples(0, 1).batch(1).element_spec

  @functools.cached_property
  def model(self) -> tff_debias.Model:
    """The model of this project."""
    return networks.to_model(self.build_model(), self.examples(0, 1))

  def examples(self, seed: int, number: int) -> tf.data.Dataset:
    """Random examples."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (number, *self.input_shape), np.uint8)
    x = x.astype(self.input_dtype)
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(x=x, y=rng.integers(0, 10, number, np.int32))
    )

  def batches(
    self, devices: int, batch_size: int, num_batches: int, examples: int
  ) -> list[tf.data.Dataset]:
    """The training batches of each device."""
    return [
      pipeline.training_dataset(
        self.examples(seed, examples), batch_size, num_batches, seed
      )
      for seed in range(devices)
    ]


PAPER = Problem(
  (32, 32, 3),
  np.uint8,
  lambda: networks.cnn(
    (32, 32, 3), 10, tf.keras.layers.Rescaling(1 / 255, name='scaling')
  ),
  bare.cnn,
)
TINY = Problem(
  (8, 8), np.float32, lambda: networks.mlp((8, 8), (32, 16), 10), bare.mlp
)
