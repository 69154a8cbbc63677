import numpy as np
import pytest
import tensorflow as tf

from tff_debias import algorithm
from tff_debias import corrections
from tff_debias import loops
from tff_debias import models
from tff_debias import personalizations


@pytest.mark.parametrize('sizes', [[], [1], [2, 3], [2, 2, 1], [1, 4, 2, 3, 3]])
@pytest.mark.parametrize('batches_per_step', [1, 2, 3])
def test_folds_groups_of_batches_and_drops_the_rest(sizes, batches_per_step):
  dataset = tf.data.Dataset.from_generator(
    lambda: ([i + 1] * size for i, size in enumerate(sizes)),
    output_signature=tf.TensorSpec([None], tf.int32),
  )

  def step(state, *group):
    assert len(group) == batches_per_step
    digits = sum(
      tf.reduce_max(batch) * 10**i for i, batch in enumerate(reversed(group))
    )
    return state[0] + 1, tf.concat([state[1], [digits]], 0)[1:]

  steps, (last,) = loops.reduce_batches(
    dataset, (0, tf.zeros([1], tf.int32)), step, batches_per_step
  )
  expected = len(sizes) // batches_per_step
  assert steps == expected
  group = range((expected - 1) * batches_per_step, expected * batches_per_step)
  assert last == (int(''.join(str(i + 1) for i in group)) if expected else 0)


@pytest.mark.parametrize('size', [1, 2, 5])
def test_the_examples_of_one_batch_alone_make_a_step(size):
  def step(state, *group):
    return [tf.reduce_sum(part) for part in group]

  for is_static in (False, True):
    dataset = tf.data.Dataset.range(1, size + 1).batch(size, is_static)
    for batches_per_step in (1, 2):
      start = [tf.constant(-1, tf.int64)] * batches_per_step
      sums = loops.reduce_batches(dataset, start, step, batches_per_step)
      expected = [size * (size + 1) // 2]
      if batches_per_step == 2:
        is_cut = size > 1 and not is_static
        expected = (
          {2: [1, 2], 5: [1 + 3 + 5, 2 + 4]}[size] if is_cut else [-1] * 2
        )
      assert [int(value) for value in sums] == expected


def test_xla_compiles_all_steps_together():
  def step(state, batch):
    return tf.tanh(state + tf.reduce_sum(batch))

  batches = tf.data.Dataset.range(6).map(lambda i: tf.cast(i, tf.float32) / 9)
  static = batches.batch(2, drop_remainder=True)
  found, expected = (
    loops.reduce_batches(static, 0.5, step, jit_compile=jit)
    for jit in (True, False)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  with pytest.raises(ValueError, match='static shapes.*None'):
    loops.reduce_batches(batches.batch(2), 0.5, step, jit_compile=True)


def test_a_second_derivative_of_a_convolution_is_no_cycle():
  # With the loop dissolved, Grappler finds "143 nodes in a cycle" here.
  layers = tf.keras.layers
  model = models.from_keras(
    tf.keras.Sequential(
      [
        layers.Input((14, 14, 1)),
        layers.Conv2D(4, 5, activation='relu'),
        layers.MaxPool2D(2),
        layers.Conv2D(4, 5, activation='relu'),
        layers.Flatten(),
        layers.Dense(10),
      ]
    ),
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    (tf.TensorSpec([None, 14, 14, 1]), tf.TensorSpec([None], tf.int32)),
  )
  rng = np.random.default_rng(0)
  x = rng.random((40, 14, 14, 1), np.float32)
  y = rng.integers(0, 10, 40).astype(np.int32)

  method = algorithm.Algorithm(
    model, personalizations.Maml(1, 0.01), corrections.NoCorrection(), 10.0
  )

  @tf.function
  def train(dataset, weights):
    received = algorithm.Broadcast(
      weights, ((),), tf.constant(0.1), tf.constant(1e-3)
    )
    return algorithm.client_update(method, received, ((),), dataset)

  dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
  weights = tf.nest.map_structure(tf.constant, model.initial_weights)
  assert train(dataset, weights).is_included
