"""Makes the batches of a round out of a client's examples.

The order of the examples is drawn here, in NumPy. A graph that is traced once,
not for each client, makes the batches of it when the round needs them.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tasks.catalog import images
from tasks.runs import errors

# Smaller batches are made at once: it takes less time than to call the graph.
_SMALL_BYTES = 2**17


def training_dataset(
  dataset: tf.data.Dataset,
  batch_size: int,
  num_batches: int,
  seed: int | Sequence[int],
  augment: images.Augmentation | None = None,
) -> tf.data.Dataset:
  """Shuffles, repeats, augments and batches; the same for the same seed.

  Every epoch is a new permutation of all examples. The epochs follow each other
  without a gap, and batches are cut from that sequence. So all batches have the
  same size, also where a client has fewer examples than a batch. A batch may
  begin in one epoch and end in the next, and then may have an example twice.
  (The authors' loader ends every epoch with a smaller batch instead. Static
  shapes are faster, and every example has the same weight.)

  The examples are as in `tff_debias.partitions`, finite, small enough for
  memory and not none. Personalized methods need two batches a local step:
  support and query by turns. The seed is nonnegative integers: (run, round,
  client). `augment` is as in `task.Task`.
  """
  try:
    # One batch that is larger than any client's data: all examples.
    examples = dataset.batch(2**40).get_single_element()
  except tf.errors.InvalidArgumentError as e:
    raise errors.UserError('A client has no example to train on.') from e
  rng = np.random.default_rng(seed)
  num_examples = len(examples['y'])
  num_epochs = -(-batch_size * num_batches // num_examples)
  order = np.concatenate(
    [rng.permutation(num_examples) for _ in range(num_epochs)]
  )
  order = order[: batch_size * num_batches].astype(np.int32)
  num_bytes = len(order) * sum(
    tensor.dtype.size * math.prod(tensor.shape[1:])
    for tensor in tf.nest.flatten(examples)
  )
  if augment is None and num_bytes <= _SMALL_BYTES:
    batches = order.reshape(num_batches, batch_size)
    return tf.data.Dataset.from_tensor_slices(
      tf.nest.map_structure(lambda tensor: tensor.numpy()[batches], examples)
    )
  seeds = rng.integers(2**31, size=(num_batches, 2), dtype=np.int32)
  batching = _batching(
    augment, batch_size, *tf.nest.flatten(dataset.element_spec)
  )
  return batching(examples, order, seeds)


def test_dataset(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
  """Each example once, in batches, of which the last may be smaller."""
  batches = dataset.batch(batch_size)
  if not 0 < dataset.cardinality() <= batch_size:
    return batches
  # A single element: to read the examples one by one takes longer.
  return tf.data.Dataset.from_tensors(batches.get_single_element())


@functools.lru_cache(maxsize=8)
def _batching(
  augment: images.Augmentation | None,
  batch_size: int,
  *unused_spec: tf.TensorSpec,
) -> Callable[..., tf.data.Dataset]:
  """A traced function of (examples, order, seeds) that gives the batches.

  There is one function for each specification of the examples. If tasks shared
  one, TensorFlow would generalize its shapes until none is known.
  """

  @functools.partial(tf.function, reduce_retracing=True, autograph=False)
  def batching(
    examples: Any, order: tf.Tensor, seeds: tf.Tensor
  ) -> tf.data.Dataset:
    def batch(indices: tf.Tensor, seed: tf.Tensor) -> Any:
      chosen = tf.nest.map_structure(
        lambda tensor: tf.gather(tensor, indices), examples
      )
      if augment is not None:
        chosen['x'] = augment(chosen['x'], seed)
      return chosen

    batches = tf.reshape(order, [-1, batch_size])
    return tf.data.Dataset.from_tensor_slices((batches, seeds)).map(batch)

  return batching
