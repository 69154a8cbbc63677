"""The floor does the same work: it gives the same weights and accuracies."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from tasks.benchmarks import bare
from tasks.catalog import networks
import tff_debias

_PERSONALIZATIONS = {
  'none': tff_debias.NoPersonalization(),
  'proto': tff_debias.Proto(),
  'maml': tff_debias.Maml(2, 0.05),
}


def problem(name):
  tf.keras.utils.set_random_seed(1)
  rng = np.random.default_rng(2)
  if name == 'cnn':
    shape = (16, 16, 1)
    scaling = tf.keras.layers.Rescaling(1 / 255)
    keras_model = networks.cnn(shape, 3, scaling)
    x = rng.integers(0, 256, (24, *shape), np.uint8)
  else:
    shape = (4, 4)
    keras_model = networks.mlp(shape, (8, 6), 3)
    x = rng.random((24, *shape), np.float32)
  model = tff_debias.from_keras(
    keras_model,
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    collections.OrderedDict(
      x=tf.TensorSpec([None, *shape], x.dtype),
      y=tf.TensorSpec([None], tf.int32),
    ),
    lambda: [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
  )
  data = collections.OrderedDict(x=x, y=rng.integers(0, 3, 24, np.int32))
  return model, getattr(bare, name), tf.data.Dataset.from_tensor_slices(data)


@pytest.mark.parametrize('personalization', _PERSONALIZATIONS)
@pytest.mark.parametrize('network', ['mlp', 'cnn'])
def test_local_training_is_the_same(network, personalization, runtime):
  model, forward, data = problem(network)
  batches = data.batch(6)
  process = tff_debias.build_learning_process(
    model,
    _PERSONALIZATIONS[personalization],
    tff_debias.NoCorrection(),
    learning_rate=0.1,
    weight_decay=1e-3,
    max_grad_norm=10.0,
  )
  client = collections.OrderedDict(client_id='a', data=batches)
  state = process.next(process.initialize(), [client]).state
  expected = process.get_model_weights(state).trainable
  start = model.initial_weights.trainable
  found = bare.build_training(forward, _PERSONALIZATIONS[personalization])(
    [tf.constant(w) for w in start], batches
  )
  for own, new in zip(found, expected, strict=True):
    np.testing.assert_allclose(own, new, atol=2e-6)
  moved = [np.abs(o - w).max() for o, w in zip(found, start, strict=True)]
  assert max(moved) > 1e-4


@pytest.mark.parametrize('personalization', ['proto', 'maml'])
def test_the_personalized_test_is_the_same(personalization, runtime):
  model, forward, data = problem('mlp')
  train, test = data.take(15).batch(15), data.skip(15).batch(9)
  evaluate = tff_debias.build_personalized_evaluation(
    model, _PERSONALIZATIONS[personalization]
  )
  expected = evaluate(
    model.initial_weights, [collections.OrderedDict(train=train, test=test)]
  )['by_client']['accuracy']['mean']
  found = bare.build_test(forward, _PERSONALIZATIONS[personalization])(
    [tf.constant(w) for w in model.initial_weights.trainable],
    next(iter(train)),
    next(iter(test)),
  )
  assert 0 < found < 1
  assert found.numpy() == pytest.approx(expected)
