"""The interface of a personalization, and what several of them share."""

import abc
from typing import Any
from typing import NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks
from tff_debias import models


class Result(NamedTuple):
  """The outcome of a personalized model on a batch.

  Attributes:
    loss: A scalar, the mean over the examples that count; 0 where none does.
      In training the model's own regularization is added.
    labels: The labels of the examples that count.
    predictions: Their predictions, as the metrics take them.
    num_losses: The number of examples that the loss is the mean of, a float32
      scalar; `None` for all that count.
  """

  loss: tf.Tensor
  labels: Any
  predictions: Any
  num_losses: tf.Tensor | None = None

  @property
  def num_examples(self) -> tf.Tensor:
    """The number of examples that count, a float32 scalar."""
    return tf.cast(tf.shape(tf.nest.flatten(self.labels)[0])[0], tf.float32)

  @property
  def batch_output(self) -> tff.learning.models.BatchOutput:
    """What the metrics of a model take."""
    return tff.learning.models.BatchOutput(
      loss=self.loss,
      predictions=self.predictions,
      num_examples=self.num_examples,
    )


class Personalization(abc.ABC):
  """A personalization T_i, in training and in the personalized test.

  The methods are pure functions of tensors. An implementation is a frozen
  dataclass of its hyperparameters, in a file of its own.
  """

  #: Consecutive batches that one local step takes: 1, or 2 for support and
  #: query.
  batches_per_step: int = 2
  #: The bound on the norm of a gradient, in training and in the personalized
  #: test, where the caller gives none. By default it is the paper's.
  default_max_grad_norm: float = 10.0

  def grad_norm_bound(self, max_grad_norm: float | None) -> float:
    """Returns `max_grad_norm`, or the default of this class for `None`."""
    if max_grad_norm is None:
      return float(self.default_max_grad_norm)
    return float(max_grad_norm)

  def check_model(self, model: models.Model) -> None:  # noqa: B027
    """Raises a `ValueError` if `model` cannot be personalized this way."""

  @abc.abstractmethod
  def meta_loss(
    self,
    model: models.Model,
    weights: models.ModelWeights,
    batches: tuple[Any, ...],
    weight_decay: tf.Tensor,
  ) -> Result:
    """The meta-loss f_i(w) = L(T_i(w)) of one local step.

    Args:
      model: The model.
      weights: The weights w of this step.
      batches: `batches_per_step` batches.
      weight_decay: The weight decay wd, a float32 scalar.

    Returns:
      The result on the query batch. Its loss is differentiable in `weights`.
    """

  @abc.abstractmethod
  def personalize(
    self,
    model: models.Model,
    weights: models.ModelWeights,
    dataset: tf.data.Dataset,
    max_grad_norm: float,
  ) -> Any:
    """The personalized test, first part: T_i(w) from all of the local data.

    Args:
      model: The model.
      weights: The meta-model w.
      dataset: The device's training data in batches, each example once.
      max_grad_norm: The bound on the norm of a gradient.

    Returns:
      A structure of tensors that `evaluate` takes.
    """

  def evaluate(
    self, model: models.Model, personalized: Any, batch: Any
  ) -> Result:
    """The personalized test, second part: the result on a batch of test data.

    Args:
      model: The model.
      personalized: What `personalize` returned: by default the weights T_i(w).
      batch: A batch.

    Returns:
      The result.
    """
    return supervised_result(model, personalized, batch, training=False)


def supervised_result(
  model: models.Model,
  weights: models.ModelWeights,
  batch: Any,
  training: bool,
) -> Result:
  """The result L(w; batch) of the model's own loss and predictions."""
  x, labels = models.split_batch(batch)
  if model.forward is not None:
    loss, predictions = model.forward(weights, batch, training)
    return Result(loss, labels, predictions)
  outputs = model.apply(weights, x, training)
  loss = model.loss(labels, outputs.predictions)
  if training:
    loss += outputs.regularization
  return Result(loss, labels, outputs.predictions)


def gradient(tape: tf.GradientTape, loss: tf.Tensor, weights: Any) -> Any:
  """The gradient of a loss, 0 for a weight that it does not depend on.

  Raises:
    ValueError: If an operation has no gradient; it names the operation.
  """
  try:
    return tape.gradient(loss, weights, unconnected_gradients='zero')
  except LookupError as e:
    raise ValueError(
      'TensorFlow has no gradient of an operation of the model'
      f' ({checks.first_line(e)}). If it is a second derivative, as exact MAML'
      ' needs it, use Maml(first_order=True).'
    ) from e


def clip(gradient: Any, max_norm: float | tf.Tensor) -> list[tf.Tensor]:
  """G · min(1, max_norm / ‖g‖), all layers together; infinity is no bound."""
  # An embedding's gradient is a list of rows, some more than once, and
  # TensorFlow takes the norm of the list.
  gradient = [tf.convert_to_tensor(g) for g in gradient]
  # TensorFlow makes NaN of an infinite bound. No norm in float32 is above 2^64.
  return tf.clip_by_global_norm(gradient, tf.minimum(max_norm, 2.0**100))[0]
