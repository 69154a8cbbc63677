"""Layers such as Dropout are on in training, and off in a test."""

import numpy as np
import pytest
import small_models
import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations


@pytest.mark.parametrize(
  ('personalization', 'num_calls', 'in_personalize'),
  [
    (personalizations.NoPersonalization(), 1, set()),
    (personalizations.Maml(2, 0.1), 3, {True}),
    (personalizations.Proto(), 2, {False}),
  ],
)
def test_the_model_is_told_whether_it_is_trained(
  personalization, num_calls, in_personalize
):
  seen = []
  model, _ = small_models.network()

  def apply(weights, x, training):
    seen.append(training)
    return model.apply(weights, x, training)

  spy = models.Model(
    model.initial_weights, model.input_spec, apply, model.loss, model.metrics
  )
  weights = tf.nest.map_structure(tf.constant, model.initial_weights)
  batch = tf.nest.map_structure(tf.constant, small_models.batch(4))
  batches = (batch,) * personalization.batches_per_step
  assert spy.output_spec.feature is not None  # This calls the model, too.
  del seen[:]
  personalization.meta_loss(spy, weights, batches, 0.0)
  assert seen == [True] * num_calls
  del seen[:]
  data = tf.data.Dataset.from_tensors(batch)
  personalized = personalization.personalize(spy, weights, data, np.inf)
  assert set(seen) == in_personalize
  del seen[:]
  personalization.evaluate(spy, personalized, batch)
  assert seen == [False]
