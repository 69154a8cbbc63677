"""What the methods need to know of a model."""

from collections.abc import Callable
from collections.abc import Mapping
import copy
import dataclasses
import functools
import itertools
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias.models import randomness

ModelWeights = tff.learning.models.ModelWeights


class Outputs(NamedTuple):
  """The outputs of a model for a batch of `b` examples.

  Attributes:
    predictions: The input of the loss and of the metrics, `[b, outputs]` for a
      classifier that gives logits.
    feature: The input of the prototypes, a float tensor `[b, ...]`; `None` for
      a functional model that was given no feature.
    regularization: The sum of the losses that the model adds by itself (its
      regularizers and `add_loss`), a scalar. Training adds it once per batch.
  """

  predictions: Any
  feature: tf.Tensor | None
  regularization: Any = 0.0


class Metrics(NamedTuple):
  """The metrics of a model as the pure functions that TFF makes of them."""

  initialize: Callable[[], Any]
  update: Callable[..., Any]
  finalize: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as the methods need it; see `from_keras` and `from_functional`.

  Attributes:
    initial_weights: A `tff.learning.models.ModelWeights` of NumPy arrays, in
      the order of `tf.keras.Model.trainable_variables`.
    input_spec: The `tf.TensorSpec`s of a batch, either a pair `(x, y)` or a
      mapping with the keys `x` and `y`; the first dimension is the batch.
    apply: A function `(weights, x, training) -> Outputs`. It is pure, except in
      the training of a model that `is_random`. Such a model should be used
      `with_seed`, or TensorFlow draws other numbers in every run.
    loss: A function `(labels, predictions) -> scalar`, the mean over a batch.
    metrics: The functional metrics.
    is_random: Whether the outputs in training are random. Then `apply` takes a
      fourth argument, the seed: an int32 tensor `[2]`, or by default `None`.
    seed: The seed that `with_seed` gave; `None` without one.
    unseeded: The model that `with_seed` was called on.
  """

  initial_weights: ModelWeights
  input_spec: Any
  apply: Callable[..., Outputs]
  loss: Callable[[Any, Any], tf.Tensor]
  metrics: Metrics
  is_random: bool = False
  seed: tf.Tensor | None = None
  unseeded: 'Model | None' = None

  def __post_init__(self):
    for weight in tf.nest.flatten(self.initial_weights.trainable):
      if weight.dtype != np.float32:
        raise ValueError(
          f'Weights must be float32 arrays, got {weight.dtype} of shape'
          f' {list(weight.shape)}.'
        )
    with tf.Graph().as_default():
      names = self.metrics.finalize(self.metrics.initialize())
    reserved = {'loss', 'num_examples', 'is_included'}.intersection(names)
    if reserved:
      raise ValueError(
        f'A metric must not be named {", ".join(sorted(reserved))}: that is'
        ' reported for every model.'
      )

  @functools.cached_property
  def output_spec(self) -> Outputs:
    """The `tf.TensorSpec`s of the outputs."""
    with randomness.scratch_graph():
      inputs = placeholders(self.initial_weights, self.input_spec)
      outputs = self.apply(*inputs, False)
      return tf.nest.map_structure(
        lambda t: (
          None if t is None else tf.TensorSpec.from_tensor(tf.identity(t))
        ),
        outputs,
      )

  def with_seed(self, seed: tf.Tensor) -> 'Model':
    """Gives this model a seed that decides all that is random in training.

    Every place in the code that calls `apply` gets a seed of its own, so that
    the steps of a personalization differ. A loop in a graph runs the same place
    many times: there, `fold_in` the number of the turn.

    Example:
      >>> seeded = model.with_seed(seed).fold_in(step)
      >>> personalization.meta_loss(seeded, weights, batches, weight_decay)

    Args:
      seed: An int32 tensor `[2]`.

    Returns:
      The model with the seed; this model where nothing in it is random.
    """
    if not self.is_random:
      return self
    unseeded = self.unseeded or self
    places = itertools.count()

    def apply(weights, x, training):
      own_seed = tf.random.fold_in(seed, next(places)) if training else None
      return unseeded.apply(weights, x, training, own_seed)

    # A copy keeps the output spec, and checks nothing again.
    seeded = copy.copy(unseeded)
    vars(seeded).update(apply=apply, seed=seed, unseeded=unseeded)
    return seeded

  def fold_in(self, number: int | tf.Tensor) -> 'Model':
    """Mixes a number into the seed; without a seed, this model itself."""
    if self.seed is None:
      return self
    return self.with_seed(tf.random.fold_in(self.seed, number))


def split_batch(batch: Any) -> tuple[Any, Any]:
  """The inputs and the labels of a batch, a pair or a mapping with x and y."""
  if isinstance(batch, Mapping):
    return batch['x'], batch['y']
  x, y = batch
  return x, y


def check_input_spec(input_spec: Any) -> None:
  """Raises a `ValueError` if these are not the specs of a batch `(x, y)`."""
  size = (
    len(input_spec) if isinstance(input_spec, (list, Mapping, tuple)) else 0
  )
  if size > 2:
    raise ValueError(
      f'input_spec must have two parts, x and y, but it has {size}. Sample'
      ' weights are not supported: make them a part of y, for example'
      " {'label': ..., 'weight': ...}, and give a loss that multiplies by them."
      f' Got {input_spec!r}.'
    )
  try:
    x, y = split_batch(input_spec)
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(
      "input_spec must be a pair (x, y) or a mapping with 'x' and 'y', got"
      f' {input_spec!r}.'
    ) from e
  for spec in tf.nest.flatten((x, y)):
    if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
      raise ValueError(
        'input_spec must hold a tf.TensorSpec of a batch (rank 1 or more, the'
        f' first dimension None) for every tensor, got {spec!r}.'
      )


def mean_loss(loss: Callable[[Any, Any], tf.Tensor]):
  """The loss, averaged where it gives a value per example."""
  return lambda labels, predictions: tf.reduce_mean(loss(labels, predictions))


def placeholder(spec: tf.TensorSpec) -> tf.Tensor:
  """A tensor without a value, in the present graph."""
  return tf.compat.v1.placeholder(spec.dtype, spec.shape)


def placeholders(
  weights: ModelWeights, input_spec: Any
) -> tuple[ModelWeights, Any]:
  """The arguments of `Model.apply`, without values, in the present graph."""
  return (
    tf.nest.map_structure(
      lambda w: tf.compat.v1.placeholder(w.dtype, w.shape), weights
    ),
    tf.nest.map_structure(placeholder, split_batch(input_spec)[0]),
  )
