"""What the methods need to know of a model."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias.models import tracing

ModelWeights: TypeAlias = tff.learning.models.ModelWeights


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
  """The metrics of a model as pure functions, as TFF has them.

  Attributes:
    initialize: `() -> state`.
    update: `(state, labels, batch_output) -> state`, where `batch_output` has
      the attribute `predictions`.
    finalize: `state -> values`, an `OrderedDict` by name.
  """

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
    apply: A function `(weights, x, training) -> Outputs`. It is pure, except
      for Dropout and the like in training.
    loss: A function `(labels, predictions) -> scalar`, the mean over a batch.
    metrics: The functional metrics.
    forward: Of a model that hides its network, in place of `apply` and `loss`:
      a function `(weights, batch, training) -> (loss, predictions)`, where the
      predictions are what the metrics take.
  """

  initial_weights: ModelWeights = dataclasses.field(repr=False)
  input_spec: Any
  apply: Callable[..., Outputs] = dataclasses.field(repr=False)
  loss: Callable[[Any, Any], tf.Tensor] = dataclasses.field(repr=False)
  metrics: Metrics = dataclasses.field(repr=False)
  forward: Callable[..., tuple[tf.Tensor, Any]] | None = dataclasses.field(
    default=None, repr=False
  )

  def __post_init__(self):
    for weight in tf.nest.flatten(self.initial_weights.trainable):
      if weight.dtype != np.float32:
        raise ValueError(
          f'Weights must be float32 arrays, got {weight.dtype} of shape'
          f' {list(weight.shape)}.'
        )
    traced = tracing.trace(
      lambda: self.metrics.finalize(self.metrics.initialize())
    )
    reserved = {'loss', 'num_examples', 'is_included'}.intersection(
      traced.structured_outputs
    )
    if reserved:
      raise ValueError(
        f'A metric must not be named {", ".join(sorted(reserved))}: that is'
        ' reported for every model. Leave it out, or give it another name.'
      )

  @functools.cached_property
  def output_spec(self) -> Outputs:
    """The `tf.TensorSpec`s of the outputs."""
    traced = tracing.trace(
      lambda weights, x: self.apply(weights, x, False),
      tracing.specs_of(self.initial_weights),
      split_batch(self.input_spec)[0],
    )
    return tracing.specs_of(traced.structured_outputs)


def split_batch(batch: Any) -> tuple[Any, Any]:
  """The inputs and the labels of a batch, a pair or a mapping with x and y."""
  if isinstance(batch, Mapping):
    return batch['x'], batch['y']
  x, y = batch
  return x, y


def check_input_spec(input_spec: Any) -> None:
  """Raises a `ValueError` if these are not the specs of a batch `(x, y)`."""
  try:
    parts = tf.nest.flatten(split_batch(input_spec))
    is_batch = len(input_spec) == 2 and all(
      isinstance(spec, tf.TensorSpec) and spec.shape.rank for spec in parts
    )
  except (KeyError, TypeError, ValueError):
    is_batch = False
  if not is_batch:
    raise ValueError(
      "input_spec must be a pair (x, y) or a mapping with 'x' and 'y', of a"
      ' tf.TensorSpec of rank 1 or more for every tensor, whose first dimension'
      f' is that of the batch, got {input_spec!r}. Sample weights are a part of'
      " y, such as {'label': ..., 'weight': ...}, and the loss multiplies by"
      ' them.'
    )
