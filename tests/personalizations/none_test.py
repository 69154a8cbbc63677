import numpy as np
import reference
import small_models
import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations

NONE = personalizations.NoPersonalization()


def constants(weights):
  return models.ModelWeights(tuple(map(tf.constant, weights)), ())


def test_the_meta_loss_is_the_loss_of_one_batch():
  assert NONE.batches_per_step == 1
  model, weights = small_models.network()
  batch = small_models.batch(5)

  @tf.function
  def compute(weights):
    with tf.GradientTape() as tape:
      tape.watch(weights.trainable)
      result = NONE.meta_loss(model, weights, (batch,), tf.constant(0.7))
    return result, tape.gradient(result.loss, weights.trainable)

  result, gradient = compute(constants(weights))
  np.testing.assert_allclose(
    result.loss, reference.loss(weights, batch), rtol=1e-5
  )
  np.testing.assert_allclose(
    result.predictions, reference.logits(weights, batch[0]), atol=1e-5
  )
  np.testing.assert_array_equal(result.labels, batch[1])
  assert result.num_examples == 5
  # Weight decay is no part of the meta-loss.
  expected = reference.derivative(lambda ws: reference.loss(ws, batch), weights)
  for g, e in zip(gradient, expected, strict=True):
    np.testing.assert_allclose(g, e, atol=1e-6)


def test_the_model_is_evaluated_as_it_is():
  model, weights = small_models.network()
  train = small_models.dataset([small_models.batch(3, seed=1)])
  personalized = NONE.personalize(model, constants(weights), train, 10.0)
  for size in (4, 1):
    batch = small_models.batch(size, seed=size)
    result = tf.function(
      lambda batch=batch: NONE.evaluate(model, personalized, batch)
    )()
    np.testing.assert_allclose(
      result.loss, reference.loss(weights, batch), rtol=1e-5
    )
    np.testing.assert_allclose(
      result.predictions, reference.logits(weights, batch[0]), atol=1e-5
    )
    assert result.num_examples == size
