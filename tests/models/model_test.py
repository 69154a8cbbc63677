import numpy as np
import pytest
import tensorflow as tf

from models import networks
from tff_debias import models

MSE = networks.MSE
VECTOR = networks.VECTOR
Y = networks.Y
dense = networks.dense
sequential = networks.sequential


@pytest.mark.parametrize(
  'spec',
  [
    VECTOR,
    None,
    (VECTOR,),
    (VECTOR, Y, Y),
    {'x': VECTOR},
    {'x': VECTOR, 'label': Y},
    (VECTOR, None),
    (VECTOR, tf.TensorSpec([])),
    (VECTOR, tf.TensorSpec(None)),
    (np.zeros((2, 3)), np.zeros((2, 2))),
    ([None, 3], [None, 2]),
    ({'a': VECTOR, 'b': 3}, Y),
  ],
)
def test_an_input_spec_that_is_not_that_of_a_batch(spec):
  with pytest.raises(ValueError, match='^input_spec must be a pair'):
    models.from_keras(sequential(dense(2)), MSE, spec)


def test_sample_weights_are_refused_by_name():
  for spec in (
    (networks.VECTOR, networks.Y, tf.TensorSpec([None])),
    {'x': networks.VECTOR, 'y': networks.Y, 'w': tf.TensorSpec([None])},
  ):
    with pytest.raises(ValueError, match='Sample weights are a part of y'):
      models.from_keras(
        networks.sequential(networks.dense(2)), networks.MSE, spec
      )


@pytest.mark.parametrize('name', ['loss', 'num_examples', 'is_included'])
def test_a_metric_of_a_reserved_name_is_refused(name):
  with pytest.raises(ValueError, match=f'must not be named {name}: that is'):
    networks.make(
      sequential(dense(2)), lambda: [tf.keras.metrics.MeanSquaredError(name)]
    )


def test_a_metric_may_be_named_counts():
  model = networks.make(
    sequential(dense(2)), lambda: [tf.keras.metrics.MeanSquaredError('counts')]
  )
  assert list(model.metrics.finalize(model.metrics.initialize())) == ['counts']
