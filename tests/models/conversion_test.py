import pytest
import tensorflow_federated as tff

from models import functional_test
from models import networks
import tff_debias
from tff_debias import models


def test_a_model_stays_the_same():
  model = networks.make(networks.sequential(networks.dense(2)))
  assert models.as_model(model) is model


def test_a_functional_model_is_converted():
  functional = functional_test.functional_model()
  model = models.as_model(functional)
  assert isinstance(model, tff_debias.Model)
  assert model.input_spec == functional.input_spec


def variable_model():
  return tff.learning.models.from_keras_model(
    networks.sequential(networks.dense(2)),
    loss=networks.MSE,
    input_spec=(networks.VECTOR, networks.Y),
  )


@pytest.mark.parametrize(
  'make, named',
  [
    (lambda: networks.sequential(networks.dense(2)), 'Sequential sequential'),
    (variable_model, '_KerasModel'),
    (lambda: variable_model, 'function variable_model.*model_fn'),
    (lambda: networks.Declared, 'type Declared'),
    (lambda: None, 'NoneType'),
    (lambda: 3, 'int'),
  ],
)
def test_what_is_no_model_is_told_what_to_call(make, named):
  with pytest.raises(TypeError, match=f'{named}.*tff_debias.from_keras'):
    models.as_model(make())
