"""Makes a `Model` of a user's argument, or says how the user can make it."""

from typing import Any

import tensorflow_federated as tff

from tff_debias.models import functional
from tff_debias.models import model as model_lib


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
  name = getattr(value, '__name__', getattr(value, 'name', repr(value)))
  raise TypeError(
    f'model must be a tff_debias.Model, got {type(value).__name__} {name}. TFF'
    ' takes a model_fn that makes a model; here the model itself is wanted.'
    ' Call tff_debias.from_keras(keras_model, loss, input_spec, metrics) with'
    ' the Keras model, or with a function that builds it.'
  )
