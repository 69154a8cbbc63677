import collections

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

from models import functional_test
from models import networks
import tff_debias
from tff_debias import algorithm
from tff_debias import models

PLAIN, NONE = tff_debias.NoCorrection(), tff_debias.NoPersonalization()
MAML = tff_debias.Maml(1, 0.1)
X, Y = small_models.DATA[0]


def client_update(model, personalization=NONE, data=(X, Y)):
  """The update of a client with two batches, and its metrics."""
  model = models.as_model(model)
  method = algorithm.Algorithm(model, personalization, PLAIN)
  received = algorithm.Broadcast(
    tf.nest.map_structure(tf.constant, model.initial_weights),
    ((),),
    tf.constant(0.1),
    tf.constant(0.0),
  )
  dataset = tf.data.Dataset.from_tensor_slices(data).batch(len(data[0]) // 2)
  result = tf.function(
    lambda: (
      (r := algorithm.client_update(method, received, ((),), dataset)).update,
      model.metrics.finalize(r.sums.metrics),
    ),
    autograph=False,
  )()
  return tf.nest.map_structure(lambda tensor: tensor.numpy(), result)


def keras_model():
  layers = tf.keras.layers
  ones = tf.keras.initializers.Ones()
  x = layers.Input([3])
  hidden = layers.Dense(2, 'tanh', kernel_regularizer='l2', name='hidden')
  hidden.kernel_initializer = tf.keras.initializers.Constant(
    [[1, 2], [3, 4], [5, 6]]
  )
  return tf.keras.Model(x, layers.Dense(1, kernel_initializer=ones)(hidden(x)))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('personalization', 'metrics'),
  [
    (
      NONE,
      [
        tf.keras.metrics.MeanAbsoluteError('error'),
        tf.keras.metrics.Mean('num_examples'),
      ],
    ),
    (MAML, [lambda: tf.keras.metrics.MeanAbsoluteError('error')]),
  ],
)
def test_a_model_fn_of_a_keras_model_is_the_model_itself(
  personalization, metrics
):
  spec, mse = small_models.LINEAR_SPEC, tf.keras.losses.MeanSquaredError()
  update, values = client_update(
    lambda: tff.learning.models.from_keras_model(
      keras_model(), mse, spec, metrics=metrics
    ),
    personalization,
  )
  expected, expected_values = client_update(
    tff_debias.from_keras(
      keras_model(), mse, spec, {'error': tf.keras.metrics.MeanAbsoluteError}
    ),
    personalization,
  )
  small_models.assert_same(update, expected)
  assert values['error'] == expected_values['error'] > 0
  # TFF counts batches too. The loss and the examples are ours.
  steps = 2 // personalization.batches_per_step
  assert values['num_batches'] == steps and len(values) == 2


def test_two_losses_with_weights():
  def build():
    x = tf.keras.layers.Input([3])
    dense = tf.keras.layers.Dense(1, use_bias=False, kernel_initializer='zeros')
    y = dense(x)
    return tf.keras.Model(x, [y, y])

  spec = (small_models.LINEAR_SPEC[0], [small_models.LINEAR_SPEC[1]] * 2)
  losses = [tf.keras.losses.MeanSquaredError() for _ in range(2)]
  (update,), _ = client_update(
    tff.learning.models.from_keras_model(build(), losses, spec, [1.0, 0.5]),
    MAML,
    (X, (Y, 3 * Y)),
  )
  # A step of MAML on the whole: 1.5 · mean (x w - 5/3 y)², and a constant.
  (a, b), (c, d) = (np.split(part.astype(np.float64), 2) for part in (X, Y))
  hessian, slope = 3 * a.T @ a / 4, -3 * a.T @ (5 / 3 * c) / 4
  adapted = -0.1 * slope
  outer = 3 * b.T @ (b @ adapted - 5 / 3 * d) / 4
  expected = -0.1 * (np.eye(3) - 0.1 * hessian) @ outer
  expected *= min(1, 10 / np.linalg.norm(expected / 0.1))
  np.testing.assert_allclose(update, expected, rtol=1e-4)


@pytest.mark.parametrize('pack', [list, lambda w: {'b': w[1], 'a': w[0]}])
def test_a_functional_model_with_weights_of_any_structure(pack):
  start = [np.ones([3, 1], np.float32), np.float32(2)]

  @tf.function
  def predict(weights, x, training):
    trainable = weights[0]
    first, second = [0, 1] if not isinstance(trainable, dict) else 'ab'
    return trainable[second] * x @ trainable[first]

  functional = tff.learning.models.FunctionalModel(
    initial_weights=(pack(start), ()),
    predict_on_batch_fn=predict,
    loss_fn=lambda out, label, weight=None: tf.reduce_mean((out - label) ** 2),
    input_spec=small_models.LINEAR_SPEC,
  )
  update, _ = client_update(functional)
  w, s = (np.float64(value) for value in start)
  for x, y in zip(np.split(X, 2), np.split(Y, 2), strict=True):
    error = 2 * (s * x @ w - y) / 4
    w, s = w - 0.1 * s * x.T @ error, s - 0.1 * np.sum(error * (x @ w))
  np.testing.assert_allclose(update[0], w - start[0], rtol=1e-5)
  np.testing.assert_allclose(update[1], s - start[1], rtol=1e-5)
  inside = tff.learning.models.model_from_functional(functional)
  small_models.assert_same(client_update(inside)[0], update)


def test_a_baseline_task_of_tff():
  task = tff.simulation.baselines.emnist.create_autoencoder_task(
    tff.simulation.baselines.ClientSpec(1, batch_size=4),
    use_synthetic_data=True,
  )
  model = models.as_model(task)
  data = task.datasets.get_centralized_test_data().unbatch().take(4)
  batch = data.batch(4).get_single_element()
  update, values = client_update(model, MAML, batch)
  assert np.linalg.norm(update[0]) > 0
  assert 'mean_squared_error' in values and 'loss' not in values


# A model that is written by hand.


class ByHand(tff.learning.models.VariableModel):
  """y = x · w + b, as TFF's tutorials write their models."""

  def __init__(self):
    self._w = tf.Variable(tf.zeros([3, 1]), name='w')
    self._b = tf.Variable(1.0, trainable=False, name='b')
    self._count = tf.Variable(0.0, trainable=False)
    self._sum = tf.Variable(0.0, trainable=False)

  trainable_variables = property(lambda self: [self._w])
  non_trainable_variables = property(lambda self: [self._b])
  local_variables = property(lambda self: [self._count, self._sum])
  input_spec = property(lambda self: small_models.LINEAR_SPEC)

  @tf.function
  def predict_on_batch(self, x, training=True):
    return x @ self._w + self._b

  @tf.function
  def forward_pass(self, batch, training=True):
    x, y = batch
    predictions = self.predict_on_batch(x, training)
    loss, size = tf.reduce_mean((predictions - y) ** 2), tf.shape(x)[0]
    self._count.assign_add(tf.cast(size, tf.float32))
    self._sum.assign_add(tf.reduce_sum(tf.abs(predictions - y)))
    return tff.learning.models.BatchOutput(loss, predictions, size)

  @tf.function
  def report_local_unfinalized_metrics(self):
    return collections.OrderedDict(
      num_examples=[self._count], error=[self._sum, self._count]
    )

  def metric_finalizers(self):
    return collections.OrderedDict(
      num_examples=tf.function(lambda values: values[0]),
      error=tf.function(lambda values: values[0] / values[1]),
    )

  @tf.function
  def reset_metrics(self):
    for variable in self.local_variables:
      variable.assign(tf.zeros_like(variable))


@pytest.mark.slow
def test_a_model_by_hand_trains_as_in_tff(runtime):
  optimizer = tff.learning.optimizers.build_sgdm(0.05)
  theirs = tff.learning.algorithms.build_unweighted_fed_avg(ByHand, optimizer)
  ours = tff_debias.build_fed_avg(ByHand, client_optimizer_fn=optimizer)
  clients = [small_models.linear_client(i, 1 + i)['data'] for i in range(3)]
  states = ours.initialize(), theirs.initialize()
  for _ in range(2):
    outputs = [
      process.next(state, clients)
      for process, state in zip((ours, theirs), states, strict=True)
    ]
    states = [output.state for output in outputs]
    found, expected = (o.metrics['client_work']['train'] for o in outputs)
    assert list(found) == ['loss', 'error', 'num_examples']
    for name in ('error', 'num_examples'):
      np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
  weights = ours.get_model_weights(states[0])
  np.testing.assert_allclose(
    weights.trainable[0],
    theirs.get_model_weights(states[1]).trainable[0],
    rtol=1e-5,
  )
  assert weights.non_trainable[0] == 1


@pytest.mark.parametrize('personalization', [MAML, tff_debias.Proto()])
def test_a_model_by_hand_is_refused_by_personalizations(personalization):
  class Labels(ByHand):
    input_spec = (small_models.LINEAR_SPEC[0], tf.TensorSpec([None], tf.int32))

  with pytest.raises(ValueError, match='Labels is a VariableModel written by'):
    tff_debias.build_per_fed_avg(Labels, personalization)


def test_a_model_stays_the_same():
  model = networks.make(networks.sequential(networks.dense(2)))
  assert models.as_model(model) is model


def test_a_functional_model_is_converted():
  functional = functional_test.functional_model()
  assert models.as_model(functional).input_spec == functional.input_spec


@pytest.mark.parametrize(
  'make, named',
  [
    (lambda: networks.sequential(networks.dense(2)), 'Sequential sequential'),
    (lambda: lambda: networks.sequential(networks.dense(2)), 'Sequential'),
    (lambda: None, 'NoneType'),
  ],
)
def test_what_is_no_model_is_told_what_to_call(make, named):
  with pytest.raises(TypeError, match=f'{named}.*tff_debias.from_keras'):
    models.as_model(make())
