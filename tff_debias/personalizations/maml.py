"""MAML: the device takes some steps of gradient descent on its support data."""

import dataclasses

import tensorflow as tf

from tff_debias import checks
from tff_debias import loops
from tff_debias import models
from tff_debias.personalizations import base


@dataclasses.dataclass(frozen=True)
class Maml(base.Personalization):
  """u_0 = w; u_{j+1} = u_j - a (∇L(u_j; A) + wd u_j); f(w) = L(u_s; B).

  Attributes:
    num_steps: The number of steps s.
    learning_rate: The size a of a step.
    first_order: Whether ∇L(u_j; A) is treated as a constant, which leaves out
      the second derivatives (first-order MAML). By default they are exact.

  Raises:
    ValueError: If `num_steps` is not a positive integer or `learning_rate` not
      a positive finite number.
  """

  num_steps: int = 5
  learning_rate: float = 0.01
  first_order: bool = False

  def __post_init__(self):
    checks.check_integer('num_steps of MAML', self.num_steps)
    checks.check_number(
      'learning_rate of MAML', self.learning_rate, positive=True
    )

  def check_model(self, model):
    """See base class: a network that is hidden is refused."""
    if model.forward is not None:
      model.apply()

  def meta_loss(self, model, weights, batches, weight_decay):
    """See base class."""
    support, query = batches
    adapted = weights.trainable
    for _ in range(self.num_steps):
      with tf.GradientTape() as tape:
        tape.watch(adapted)
        loss = base.supervised_result(
          model,
          models.ModelWeights(adapted, weights.non_trainable),
          support,
          training=True,
        ).loss
      gradients = base.gradient(tape, loss, adapted)
      if self.first_order:
        gradients = tf.nest.map_structure(tf.stop_gradient, gradients)
      adapted = tuple(
        u - self.learning_rate * (g + weight_decay * u)
        for u, g in zip(adapted, gradients, strict=True)
      )
    adapted = models.ModelWeights(adapted, weights.non_trainable)
    return base.supervised_result(model, adapted, query, training=True)

  def personalize(self, model, weights, dataset, max_grad_norm):
    """See base class: full-batch steps, clipped, without weight decay."""

    def take_step(step, adapted):
      gradients = _full_batch_gradient(
        model,
        models.ModelWeights(adapted, weights.non_trainable),
        dataset,
      )
      clipped = base.clip(gradients, max_grad_norm)
      adapted = tuple(
        u - self.learning_rate * g
        for u, g in zip(adapted, clipped, strict=True)
      )
      return step + 1, adapted

    # A loop in the graph: a hundred steps would make a graph of a minute.
    _, adapted = tf.while_loop(
      lambda step, _: step < self.num_steps,
      take_step,
      (0, weights.trainable),
      parallel_iterations=1,
    )
    return models.ModelWeights(adapted, weights.non_trainable)


def _full_batch_gradient(
  model: models.Model,
  weights: models.ModelWeights,
  dataset: tf.data.Dataset,
) -> tuple[tf.Tensor, ...]:
  """The gradient of the mean loss over all examples, a batch at a time."""

  def add_batch(state, batch):
    total, num_examples = state
    with tf.GradientTape() as tape:
      tape.watch(weights.trainable)
      result = base.supervised_result(model, weights, batch, training=True)
      loss = result.loss * result.num_examples
    gradients = base.gradient(tape, loss, weights.trainable)
    total = tuple(t + g for t, g in zip(total, gradients, strict=True))
    return total, num_examples + result.num_examples

  zeros = tuple(tf.zeros_like(w) for w in weights.trainable)
  total, num_examples = loops.reduce_batches(dataset, (zeros, 0.0), add_batch)
  return tuple(tf.math.divide_no_nan(t, num_examples) for t in total)
