"""The device's part of a round, as pure functions of tensors (Algorithm 1)."""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tff_debias import corrections
from tff_debias import loops
from tff_debias import models
from tff_debias import personalizations


class Hyperparameters(NamedTuple):
  """What the server sends along: float32 scalars.

  Attributes:
    learning_rate: β_t.
    weight_decay: wd.
    max_grad_norm: The bound on the norm of the gradient, all layers together.
  """

  learning_rate: tf.Tensor
  weight_decay: tf.Tensor
  max_grad_norm: tf.Tensor


class State(NamedTuple):
  """The state of local training between steps."""

  weights: corrections.Weights
  num_steps: tf.Tensor
  loss_sum: tf.Tensor
  num_examples: tf.Tensor
  metrics: Any


class LocalResult(NamedTuple):
  """What local training leads to; all zeros where the device does not count.

  Attributes:
    counts: Whether the device took at least one step and its result is finite.
    update: w_i - w^t.
    message: What the correction sends besides.
    device_state: The correction's new device state; the old one where the
      device does not count.
    loss_sum: The sum of the loss over the examples that counted.
    num_examples: Their number.
    metrics: The unfinalized metrics over the same examples.
  """

  counts: tf.Tensor
  update: corrections.Weights
  message: tuple[tf.Tensor, ...]
  device_state: tuple[tf.Tensor, ...]
  loss_sum: tf.Tensor
  num_examples: tf.Tensor
  metrics: Any


def train(
  model: models.Model,
  personalization: personalizations.Personalization,
  correction: corrections.Correction,
  hyperparameters: Hyperparameters,
  start: models.ModelWeights,
  server_message: Any,
  device_state: Any,
  dataset: tf.data.Dataset,
) -> LocalResult:
  """Takes a local step for every group of batches in the dataset.

  Args:
    model: The model.
    personalization: The personalization T_i.
    correction: The correction R_i.
    hyperparameters: β_t, wd and the bound on the gradient.
    start: The broadcast model w^t.
    server_message: What the server sends besides.
    device_state: The device's state of the correction.
    dataset: Batches. `batches_per_step` consecutive ones make a step (support,
      query); what remains at the end is not used.

  Returns:
    A `LocalResult`.
  """

  def step(state: State, *batches: Any) -> State:
    weights = models.ModelWeights(state.weights, start.non_trainable)
    with tf.GradientTape() as tape:
      tape.watch(weights.trainable)
      result = personalization.meta_loss(
        model, weights, batches, hyperparameters.weight_decay
      )
    gradient = tape.gradient(
      result.loss, weights.trainable, unconnected_gradients='zero'
    )
    term = correction.gradient_term(
      server_message, device_state, weights.trainable, start.trainable
    )
    if term is not None:
      gradient = tf.nest.map_structure(tf.add, gradient, term)
    gradient = personalizations.clip(gradient, hyperparameters.max_grad_norm)
    return State(
      weights=tuple(
        w
        - hyperparameters.learning_rate * (g + hyperparameters.weight_decay * w)
        for w, g in zip(weights.trainable, gradient, strict=True)
      ),
      num_steps=state.num_steps + 1.0,
      loss_sum=state.loss_sum + result.loss * result.num_examples,
      num_examples=state.num_examples + result.num_examples,
      metrics=model.metrics.update(
        state.metrics, result.labels, result.batch_output
      ),
    )

  final = loops.reduce(
    dataset,
    State(start.trainable, 0.0, 0.0, 0.0, model.metrics.initialize()),
    step,
    personalization.batches_per_step,
  )
  update = tf.nest.map_structure(
    tf.subtract, final.weights, tuple(start.trainable)
  )
  new_state, message = correction.finish_device(
    server_message,
    device_state,
    update,
    final.num_steps,
    hyperparameters.learning_rate,
  )
  counts = final.num_steps > 0
  for tensor in tf.nest.flatten((update, message, new_state, final.loss_sum)):
    counts &= tf.reduce_all(tf.math.is_finite(tensor))

  def if_counts(tensor: tf.Tensor) -> tf.Tensor:
    return tf.where(counts, tensor, tf.zeros_like(tensor))

  return LocalResult(
    counts=counts,
    update=tf.nest.map_structure(if_counts, update),
    message=tf.nest.map_structure(if_counts, message),
    device_state=tf.nest.map_structure(
      lambda new, old: tf.where(counts, new, old), new_state, device_state
    ),
    loss_sum=if_counts(final.loss_sum),
    num_examples=if_counts(final.num_examples),
    metrics=tf.nest.map_structure(if_counts, final.metrics),
  )
