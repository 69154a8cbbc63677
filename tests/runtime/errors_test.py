import collections

import numpy as np
import pytest
import reference
import small_models
import tensorflow as tf

from tff_debias import corrections
from tff_debias import evaluation
from tff_debias import learning_process
from tff_debias import personalizations
from tff_debias import runtime

pytestmark = pytest.mark.usefixtures('runtime')

MAML = personalizations.Maml(num_steps=1)


def client(data, client_id='alice'):
  return collections.OrderedDict(client_id=client_id, data=data)


@pytest.fixture(scope='module')
def process():
  model, _ = small_models.network()
  return learning_process.build_learning_process(
    model, MAML, corrections.NoCorrection()
  )


def in_batches(x, y):
  return tf.data.Dataset.from_tensor_slices((x, y)).batch(3)


def test_data_of_a_generator_are_refused_and_can_be_saved(tmp_path):
  data = small_models.DATA[0]
  sizes = (4, 1, 3, 2)  # Batches that change their size.
  batches = [tuple(part[:size] for part in data) for size in sizes]
  generated = small_models.dataset(batches)
  process = small_models.linear_process(corrections.NoCorrection())
  state = process.initialize()
  with pytest.raises(runtime.ComputationError) as error:
    process.next(state, [client(generated)])
  assert 'Dataset.from_generator' in str(error.value)
  assert 'dataset.save(path)' in str(error.value)
  path = str(tmp_path / 'data')
  generated.save(path)
  output = process.next(state, [client(tf.data.Dataset.load(path))])
  loop = reference.PlainLoop([np.zeros((3, 1))], reference.squared_gradient)
  loop.round({0: batches})
  np.testing.assert_allclose(
    small_models.selected(process, output.state), loop.selected[0], rtol=1e-5
  )
  assert output.metrics['client_work']['train']['num_examples'] == sum(sizes)


@pytest.mark.parametrize(
  'personalization', [MAML, personalizations.Proto()], ids=['maml', 'proto']
)
def test_a_label_out_of_range_names_its_client(personalization):
  model, _ = small_models.network()
  process = learning_process.build_learning_process(
    model, personalization, corrections.NoCorrection()
  )
  x, y = small_models.batch(12)
  wrong = np.where(np.arange(12) == 1, 9, y)
  with pytest.raises(runtime.ComputationError) as error:
    process.next(
      process.initialize(),
      [client(in_batches(x, y)), client(in_batches(x, wrong), 'bob')],
    )
  assert str(error.value) == (
    'A label (or the index of an embedding) must be from 0 to 2, got 9. The'
    ' client bob has it.'
  )
  test = evaluation.build_personalized_evaluation(model, personalization)
  with pytest.raises(runtime.ComputationError, match='from 0 to 2, got 9'):
    test(
      process.get_model_weights(process.initialize()),
      [collections.OrderedDict(train=in_batches(x, y), test=[(x, wrong)])],
    )


X, Y = small_models.batch(12)


@pytest.mark.parametrize(
  ('value', 'said'),
  [
    (in_batches(X, Y), 'BatchDataset'),
    (client(in_batches(X, Y), 3), "class 'int'"),
    ({'data': in_batches(X, Y), 'client_id': 'a'}, 'BatchDataset'),
    (client(in_batches(X, Y.astype(np.int64))), r'float32\[\?,3\],int64\[\?\]'),
    (client(in_batches(X, Y).unbatch()), r'float32\[3\],int32>'),
  ],
  ids=['no id', 'integer id', 'order', 'labels', 'no batches'],
)
def test_wrong_data_name_the_right_ones(process, value, said):
  with pytest.raises(TypeError, match=said) as error:
    process.next(process.initialize(), [value])
  assert (
    'Each client gives <client_id=str,data=<float32[?,3],int32[?]>*>'
  ) in str(error.value)
