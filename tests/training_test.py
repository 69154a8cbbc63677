import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import tff_debias

pytestmark = pytest.mark.usefixtures('runtime')

_SPEC = collections.OrderedDict(
  x=tf.TensorSpec([None, 3]), y=tf.TensorSpec([None, 1])
)


class _Mean(tf.keras.losses.Loss):
  """Its gradient is the mean input, whatever the weights are."""

  def call(self, y_true, y_pred):
    return y_pred


def keras_model():
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input((3,)),
      tf.keras.layers.Dense(1, use_bias=False, kernel_initializer='zeros'),
    ]
  )


def examples(sizes, constant=None):
  rng = np.random.default_rng(0)
  made = {}
  for i, size in enumerate(sizes):
    x = rng.normal(size=(size, 3)).astype(np.float32)
    if constant is not None:
      x[:] = constant
    made[f'phone_{i}'] = x, x.sum(axis=1, keepdims=True)
  return made


@pytest.mark.slow
def test_a_personalized_method_takes_the_number_of_local_steps(capfd):
  model = tff_debias.from_keras(keras_model(), _Mean(), _SPEC)
  process = tff_debias.build_per_fed_avg(
    model, tff_debias.Maml(2, 0.5), learning_rate=0.1
  )
  data = tff_debias.client_data_from(examples([5, 9, 1], constant=1.0))
  state, table = tff_debias.train(process, data, 3, 2, 7, 4)
  (weights,) = process.get_model_weights(state).trainable
  # In each of 3 rounds 7 steps of 0.1, downhill.
  np.testing.assert_allclose(weights, np.full((3, 1), -2.1), rtol=1e-5)
  assert [row['round'] for row in table] == [1, 2, 3]
  assert all('loss' in row for row in table)
  assert '3/3' in capfd.readouterr().out
  assert tff_debias.get_batches_per_step(process) == 2
  composed = tff_debias.compose_with_client_data(
    process, data.preprocess(lambda d: d.batch(4))
  )
  assert tff_debias.get_batches_per_step(composed) == 2
  with pytest.raises(TypeError, match='before compose_with_client_data'):
    tff_debias.train(composed, data, 3, 2, 7, 4)
  # What is wrong is named.
  data = tff_debias.client_data_from(examples([3, 0]))
  for numbers, message in (
    ((0, 1, 1, 1), 'rounds must be at least 1'),
    ((1, 3, 1, 1), 'clients_per_round must be at most 2'),
    ((1, 2, 1, 0), 'batch_size must be at least 1'),
    ((1, 2, 1, 1), 'phone_1 has no example'),
  ):
    with pytest.raises(ValueError, match=message):
      tff_debias.train(process, data, *numbers)


@pytest.mark.slow
def test_tffs_own_process_trains_as_ours(tmp_path):
  def build_model():
    return tff.learning.models.from_keras_model(
      keras_model(), tf.keras.losses.MeanSquaredError(), _SPEC
    )

  theirs = tff.learning.algorithms.build_unweighted_fed_avg(
    build_model, tff.learning.optimizers.build_sgdm(0.05)
  )
  model = tff_debias.from_keras(
    keras_model(), tf.keras.losses.MeanSquaredError(), _SPEC
  )
  # Its clients have states, so they take part with their ids.
  dyn = tff_debias.build_fed_dyn(
    model,
    alpha=1e-9,
    num_clients=4,
    storage=tff_debias.ClientStorage(tmp_path),
    learning_rate=0.05,
  )
  data = tff_debias.client_data_from(examples([6, 8, 7, 9]))
  found = []
  for process, seed in ((theirs, 3), (dyn, 3), (dyn, 4)):
    state, _ = tff_debias.train(process, data, 1, 2, 5, 4, seed=seed)
    (weights,) = process.get_model_weights(state).trainable
    found.append(np.asarray(weights))
  expected, same, other = found
  # The first states of Dyn are 0.
  np.testing.assert_allclose(same, expected, rtol=1e-5)
  assert np.abs(other - expected).max() > 1e-3
