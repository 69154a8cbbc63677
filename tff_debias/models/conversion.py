"""Makes a `Model` of a user's argument, or says how the user can make it."""

from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias.models import functional
from tff_debias.models import model as model_lib

_FROM_KERAS = 'tff_debias.from_keras(keras_model, loss, input_spec, metrics)'


def as_model(value: Any) -> model_lib.Model:
  """Returns a `Model`; converts a `tff.learning.models.FunctionalModel`.

  Args:
    value: The argument `model` of a function of this package.

  Raises:
    TypeError: If `value` is neither, with the function to call instead.
  """
  if isinstance(value, model_lib.Model):
    return value
  if isinstance(value, tff.learning.models.FunctionalModel):
    return functional.from_functional(value)
  if isinstance(value, tf.keras.Model):
    given = f'the Keras model {value.name!r}: call {_FROM_KERAS}'
  elif isinstance(value, tff.learning.models.VariableModel):
    given = (
      f'a tff.learning.models.VariableModel ({type(value).__name__}), whose'
      f' variables cannot be exchanged: call {_FROM_KERAS} with the Keras model'
      ' that it wraps'
    )
  elif callable(value):
    name = getattr(value, '__name__', type(value).__name__)
    given = (
      f'the function {name!r}. TFF takes a model_fn that makes a model; here'
      f' the model itself is wanted: call {_FROM_KERAS}, whose keras_model may'
      ' be a function that builds a tf.keras.Model'
    )
  else:
    given = (
      f'{type(value).__name__} {value!r}: call {_FROM_KERAS}, or'
      ' tff_debias.from_functional(functional_model)'
    )
  raise TypeError(f'model must be a tff_debias.Model, got {given}.')
