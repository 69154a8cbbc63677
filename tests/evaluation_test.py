import collections
import types

import numpy as np
import pytest
import reference
import small_models
import tensorflow as tf

import tff_debias

_NUM_CLIENTS = 5


def _data(seed=0):
  """Per client `(train_x, train_y, test_x, test_y)`, of different sizes."""
  rng = np.random.default_rng(seed)
  clients = []
  for i in range(_NUM_CLIENTS):
    sizes = (4 + i, 3 + 2 * i)
    clients.append(
      [
        array
        for n in sizes
        for array in (
          rng.normal(size=(n, 3)).astype(np.float32),
          rng.integers(0, 3, n).astype(np.int32),
        )
      ]
    )
  return clients


def _client_data(clients, batch_size=2):
  def dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)

  return [
    collections.OrderedDict(train=dataset(*d[:2]), test=dataset(*d[2:]))
    for d in clients
  ]


def _accuracy():
  return [tf.keras.metrics.SparseCategoricalAccuracy('acc')]


def _expected(weights, clients):
  """Loss and accuracy of each client without personalization."""
  losses, accuracies, sizes = [], [], []
  for *_, x, y in clients:
    losses.append(reference.loss(weights, (x, y)))
    scores = reference.logits(weights, x)
    accuracies.append((scores.argmax(1) == y).mean())
    sizes.append(len(y))
  return np.array(losses), np.array(accuracies), np.array(sizes)


def _check(statistics, values, weights):
  """Checks the statistics against values repeated by their weights."""
  repeated = np.repeat(values, weights)
  expected = {
    'mean': repeated.mean(),
    'min': repeated.min(),
    'max': repeated.max(),
    **{
      f'q{q}': np.quantile(repeated, q / 100, method='inverted_cdf')
      for q in (10, 50, 90)
    },
  }
  assert list(statistics) == list(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(statistics[name], value, rtol=1e-5, err_msg=name)


def test_statistics_by_client_and_by_example(runtime):
  model, weights = small_models.network(metrics=_accuracy)
  clients = _data()
  evaluation = tff_debias.build_personalized_evaluation(
    model, tff_debias.NoPersonalization()
  )
  metrics = evaluation(model.initial_weights, _client_data(clients))
  losses, accuracies, sizes = _expected(weights, clients)
  ones = np.ones_like(sizes)
  for shares, group in ((ones, 'by_client'), (sizes, 'by_example')):
    _check(metrics[group]['loss'], losses, shares)
    _check(metrics[group]['acc'], accuracies, shares)
  assert metrics['clients'] == _NUM_CLIENTS
  assert metrics['left_out'] == 0
  assert metrics['num_examples'] == sizes.sum()


def test_leaves_out_clients_without_a_result(runtime):
  model, weights = small_models.network(metrics=_accuracy)
  clients = _data()
  evaluation = tff_debias.build_personalized_evaluation(
    model, tff_debias.Maml(1, 0.1)
  )
  whole = evaluation(model.initial_weights, _client_data(clients[2:4]))
  clients[0] = [a[:0] if i < 2 else a for i, a in enumerate(clients[0])]
  clients[1] = [a[:0] if i >= 2 else a for i, a in enumerate(clients[1])]
  clients[4][0][0, 0] = np.nan
  data = _client_data(clients)
  unknown = [
    collections.OrderedDict(c, train=c['train'].filter(lambda *_: True))
    for c in data
  ]
  for given in (data, unknown):
    metrics = evaluation(model.initial_weights, given)
    assert (metrics['clients'], metrics['left_out']) == (2, 3)
    assert metrics['by_client'] == whole['by_client']
  nobody = evaluation(model.initial_weights, _client_data(clients[:1]))
  assert (nobody['clients'], nobody['left_out']) == (0, 1)
  assert np.isfinite(list(nobody['by_client']['loss'].values())).all()


def test_client_results_are_in_the_order_of_the_clients(runtime):
  model, weights = small_models.network(metrics=_accuracy)
  clients = _data()
  evaluation = tff_debias.build_client_evaluation(
    model, tff_debias.NoPersonalization()
  )
  results = evaluation(model.initial_weights, _client_data(clients))
  losses, accuracies, sizes = _expected(weights, clients)
  np.testing.assert_allclose([r['loss'] for r in results], losses, rtol=1e-5)
  np.testing.assert_allclose([r['acc'] for r in results], accuracies)
  assert [r['num_examples'] for r in results] == list(sizes)
  assert all(r['is_included'] for r in results)


@pytest.mark.slow
def test_results_by_step_are_those_of_so_many_steps(runtime):
  model, weights = small_models.network(metrics=_accuracy)
  data = _client_data(_data())
  # Of a bound that some steps reach.
  options = {'max_grad_norm': 0.3}
  by_step = tff_debias.build_step_evaluation(
    model, tff_debias.Maml(1, 0.4), 2, **options
  )(model.initial_weights, data)
  expected = tff_debias.build_client_evaluation(
    model, tff_debias.Maml(2, 0.4), **options
  )(model.initial_weights, data)
  for found, wanted in zip(by_step, expected, strict=True):
    for name, value in wanted.items():
      assert found[name][2] == pytest.approx(value, rel=1e-5)
  losses, *_ = _expected(weights, _data())
  np.testing.assert_allclose([f['loss'][0] for f in by_step], losses, rtol=1e-5)
  assert len({loss for found in by_step for loss in found['loss']}) == 15


def test_an_example_without_a_prototype_is_wrong(runtime):
  clients = _data()
  # Nobody trains on the last class. The first client is tested on no other, the
  # second on others, too.
  for _, y, *_ in clients:
    y %= 2
  clients[0][3][:] = clients[1][3][0] = 2
  cross = tf.keras.metrics.SparseCategoricalCrossentropy
  model, weights = small_models.network(
    metrics=lambda: [*_accuracy(), cross('cross', from_logits=True)]
  )
  results = tff_debias.build_client_evaluation(model, tff_debias.Proto())(
    model.initial_weights, _client_data(clients)
  )
  for result, (x, y, test_x, test_y) in zip(results, clients, strict=True):
    scores = reference.proto_scores(weights, (x, y), test_x)
    right = np.isin(test_y, y) & (scores.argmax(axis=1) == test_y)
    assert result['is_included']
    assert result['num_examples'] == len(test_y)
    np.testing.assert_allclose(result['acc'], right.mean(), rtol=1e-6)
    np.testing.assert_allclose(
      result['loss'],
      reference.proto_loss(weights, (x, y), (test_x, test_y)),
      rtol=1e-5,
    )
  assert results[0]['acc'] == 0


def test_refuses_a_number_of_steps_that_is_none():
  for wrong in (-1, 1.5):
    with pytest.raises(ValueError, match=f'num_steps must be .*, got {wrong}'):
      tff_debias.build_step_evaluation(
        small_models.linear_model(), tff_debias.Maml(), wrong
      )


class _Labels(tf.keras.metrics.Metric):
  """The sum of the labels, as a vector."""

  def __init__(self):
    super().__init__(name='labels')
    self.total = self.add_weight('total', shape=[2], initializer='zeros')

  def update_state(self, y_true, y_pred, sample_weight=None):
    self.total.assign_add(tf.cast(tf.reduce_sum(y_true), tf.float32) * [1, 2])

  def result(self):
    return tf.identity(self.total)


class _Pair(_Labels):
  def result(self):
    return {'one': self.total[0], 'two': self.total[1]}


@pytest.mark.parametrize('metric', [_Labels, _Pair])
def test_refuses_metrics_that_are_no_scalars(metric):
  with pytest.raises(ValueError, match="scalars.*'labels' is .*TensorSpec"):
    tff_debias.build_personalized_evaluation(
      small_models.network(metrics=metric)[0], tff_debias.NoPersonalization()
    )


@pytest.mark.parametrize(
  'build',
  [
    tff_debias.build_personalized_evaluation,
    tff_debias.build_client_evaluation,
    lambda *args: tff_debias.build_step_evaluation(*args, 2),
    lambda *args: tff_debias.build_personalize_fn(*args, 2),
  ],
)
def test_refuses_what_is_no_model(build):
  with pytest.raises(TypeError, match='model must be .*from_keras'):
    build(tf.keras.Sequential(), tff_debias.Maml())


def _personalized_loss(model, maml, options, clients):
  evaluate = tff_debias.build_personalized_evaluation(model, maml, **options)
  return evaluate(model.initial_weights, clients)['by_client']['loss']['mean']


def _client_loss(model, maml, options, clients):
  evaluate = tff_debias.build_client_evaluation(model, maml, **options)
  return evaluate(model.initial_weights, clients)[0]['loss']


def _step_loss(model, maml, options, clients):
  evaluate = tff_debias.build_step_evaluation(model, maml, 1, **options)
  return evaluate(model.initial_weights, clients)[0]['loss'][1]


def _personalize_fn_loss(model, maml, options, clients):
  test = tff_debias.build_personalize_fn(model, maml, 1, **options)()
  variables = types.SimpleNamespace(
    trainable_variables=list(map(tf.Variable, model.initial_weights.trainable)),
    non_trainable_variables=[],
  )
  train, test_data = (part.unbatch() for part in clients[0].values())
  return test(variables, train, test_data)['loss'].numpy()


MAML, FREE = tff_debias.Maml(1, 0.1), small_models.FreeMaml(1, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('loss_of', 'maml', 'options', 'gradient'),
  [
    (_personalized_loss, MAML, {}, 10),
    (_client_loss, FREE, {}, 50),
    (_step_loss, MAML, {'max_grad_norm': 20}, 20),
    (_personalize_fn_loss, MAML, {'max_grad_norm': 20}, 20),
  ],
)
def test_gradients_are_clipped_by_default_as_in_training(
  runtime, loss_of, maml, options, gradient
):
  # The gradient of (w + 25)² at 0 is 50. The step is 0.1 times the bound.
  x, y = np.ones((1, 1), np.float32), np.full((1, 1), -25, np.float32)
  data = tf.data.Dataset.from_tensor_slices((x, y)).batch(1)
  clients = [collections.OrderedDict(train=data, test=data)]
  loss = loss_of(small_models.linear_model(1), maml, options, clients)
  assert loss == pytest.approx((25 - 0.1 * gradient) ** 2)
