import collections

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

import tff_debias

pytestmark = pytest.mark.usefixtures('runtime')

IDS = ['a', 'Zoë', 'Łukasz']


def client_data(batch_size=4, repeat=2):
  data = small_models.linear_client_data(IDS)
  return data.preprocess(lambda d: d.batch(batch_size).repeat(repeat))


@pytest.fixture(scope='module')
def fed_avg(runtime):
  return tff_debias.build_fed_avg(
    small_models.linear_model(), learning_rate=0.05
  )


def test_ids_are_evaluated_as_their_data_are():
  model, data = (
    small_models.linear_model(initial=[1, 2, 3]),
    client_data(repeat=1),
  )
  evaluation = tff_debias.build_personalized_evaluation(
    model, tff_debias.Maml(2, 0.1)
  )
  composed = tff_debias.compose_evaluation_with_client_data(
    evaluation, data, data
  )
  weights = model.initial_weights
  dataset = data.create_tf_dataset_for_client
  clients = [
    collections.OrderedDict(train=dataset(i), test=dataset(i)) for i in IDS
  ]
  assert composed(weights, IDS) == evaluation(weights, clients)


def test_data_of_another_model_are_refused(fed_avg):
  data = client_data().preprocess(lambda d: d.unbatch())
  with pytest.raises(TypeError, match='batches of the model.*preprocess'):
    tff_debias.compose_with_client_data(fed_avg, data)


def test_data_too_large_for_a_graph_are_named(fed_avg):
  large = np.zeros(2**31, np.uint8)

  def read(client_id):
    x = large[:3] if isinstance(client_id, str) else large
    return tf.data.Dataset.from_tensors(tf.convert_to_tensor(x))

  data = tff.simulation.datasets.ClientData.from_clients_and_tf_fn(['a'], read)
  with pytest.raises(ValueError, match='2 GB. .*create_tf_dataset_for_client'):
    tff_debias.compose_with_client_data(fed_avg, data)


def test_comparisons_in_the_users_pipeline_are_of_values(fed_avg):
  def change(x, y):
    return x, tf.where(x[:1] == 1.0, 100.0, y)

  x = np.ones((4, 3), np.float32)
  data = tff.simulation.datasets.TestClientData({'a': (x, x[:, :1])})
  data = data.preprocess(lambda d: d.map(change).batch(4))
  composed = tff_debias.compose_with_client_data(fed_avg, data)
  _, metrics = composed.next(composed.initialize(), ['a'])
  # The weights are zeros.
  np.testing.assert_allclose(metrics['client_work']['train']['loss'], 100.0**2)


def test_arrays_of_each_client_are_client_data():
  rng = np.random.default_rng(0)
  arrays = {
    name: (rng.normal(size=(size, 2)), np.arange(size))
    for name, size in (('phone', 3), ('tablet', 0), ('é', 5))
  }
  data = tff_debias.client_data_from(arrays)
  assert data.client_ids == list(arrays)
  for name, (x, y) in arrays.items():
    eager = data.create_tf_dataset_for_client(name)
    in_graph = data.dataset_computation(name)
    for dataset in (eager, in_graph):
      found = list(dataset.as_numpy_iterator())
      assert [e['y'] for e in found] == y.tolist()
      np.testing.assert_array_equal(
        np.reshape([e['x'] for e in found], x.shape), x
      )
  assert eager.element_spec['y'].dtype == np.int32


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({}, 'must have a client'),
    ({'a': (np.zeros((2, 3)), [1])}, r'a must have .* x \[2, 3\], y \[1\]'),
    (
      {'a': (np.zeros((1, 3)), [1]), 'b': (np.zeros((1, 4)), [1])},
      r"a has .*'float64', \[3\].* b has .*'float64', \[4\]",
    ),
  ],
)
def test_arrays_that_do_not_fit_are_named(arrays, message):
  with pytest.raises(ValueError, match=message):
    tff_debias.client_data_from(arrays)
