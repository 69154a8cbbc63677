"""Makes a `Model` of whatever TFF's algorithms take as a model."""

import functools
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import internals
from tff_debias.models import functional
from tff_debias.models import keras
from tff_debias.models import model as model_lib
from tff_debias.models import stand_ins
from tff_debias.models import tracing

# We report these of every model, with the same meaning.
_REPORTED = ('loss', 'num_examples')


def as_model(value: Any) -> model_lib.Model:
  """Returns the `Model` of an argument `model` of this package.

  Args:
    value: A `Model`, or what TFF takes in its place: a
      `tff.learning.models.FunctionalModel`; a
      `tff.learning.models.VariableModel` or a function without arguments that
      makes one of these; a `tff.simulation.baselines.BaselineTask`. A
      `VariableModel` written by hand trains and is tested without
      personalization only.

  Returns:
    The model. Metrics named `loss` and `num_examples` are those of this
    package.

  Raises:
    TypeError: If it is none of these.
  """
  if isinstance(value, tff.simulation.baselines.BaselineTask):
    value = value.model_fn
  is_made = isinstance(value, (tf.keras.Model, model_lib.Model))
  if callable(value) and not is_made:
    with internals.eager_mode():
      value = value()
  if isinstance(value, model_lib.Model):
    return value
  # The model inside of `tff.learning.models.model_from_functional`.
  value = getattr(value, '_functional_model', value)
  if isinstance(value, tff.learning.models.FunctionalModel):
    return functional.from_functional(value)
  if isinstance(value, tff.learning.models.VariableModel):
    if hasattr(value, '_keras_model'):
      return _from_keras_model(value)
    return _from_variable_model(value)
  name = getattr(value, '__name__', getattr(value, 'name', repr(value)))
  raise TypeError(
    f'model must be a tff_debias.Model, got {type(value).__name__} {name}. Call'
    ' tff_debias.from_keras(keras_model, loss, input_spec, metrics) with a'
    ' Keras model; or give what TFF takes, a model_fn or a FunctionalModel.'
  )


def _from_keras_model(model: Any) -> model_lib.Model:
  """The model inside of `tff.learning.models.from_keras_model`."""

  def loss(labels: Any, predictions: Any) -> tf.Tensor:
    return tf.add_n(
      [
        weight * loss_fn(label, prediction)
        for weight, loss_fn, label, prediction in zip(
          model._loss_weights, model._loss_fns, labels, predictions, strict=True
        )
      ]
    )

  metrics = {}
  for metric in model.get_metrics():
    if metric.name not in _REPORTED:
      metrics[metric.name] = model._metric_constructors.get(
        metric.name,
        functools.partial(type(metric).from_config, metric.get_config()),
      )
  is_one = len(model._loss_fns) == 1
  return keras.from_keras(
    model._keras_model,
    model._loss_fns[0] if is_one else loss,
    model.input_spec,
    metrics,
  )


def _from_variable_model(model: Any) -> model_lib.Model:
  """A model written by hand, whose forward pass also updates its metrics.

  The local variables of metrics are added up over batches, as TFF adds them up
  over clients.
  """
  model_lib.check_input_spec(model.input_spec)
  weights = [*model.trainable_variables], [*model.non_trainable_variables]
  variables, local = sum(weights, []), [*model.local_variables]
  owner = tf.keras.layers.Layer()  # Without layers and variables of its own.
  start = [v.numpy() for v in local]

  def forward(
    weights: model_lib.ModelWeights, batch: Any, training: bool
  ) -> tuple[tf.Tensor, list[tf.Tensor]]:
    values = [*weights.trainable, *weights.non_trainable, *start]
    values = [tf.convert_to_tensor(value) for value in values]
    with stand_ins.standing_for(owner, [*variables, *local], values) as present:
      output = tracing.call(model.forward_pass, batch, training=training)
      sums = [
        after - before
        for after, before in zip(present[len(variables) :], start, strict=True)
      ]
    return output.loss, sums

  def refuse(*args: Any) -> Any:
    raise ValueError(
      f'{type(model).__name__} is a VariableModel written by hand, whose'
      ' forward_pass hides the network: it can be trained and tested without'
      ' personalization only. For MAML or prototypes, make the model by'
      ' tff_debias.from_keras or from_functional.'
    )

  def finalize(state: Any) -> dict[str, Any]:
    with stand_ins.standing_for(owner, local, state):
      values = tracing.call(model.report_local_unfinalized_metrics)
      # Here, for it may return the variables themselves.
      values = tf.nest.map_structure(tf.convert_to_tensor, values)
    return {
      name: tracing.call(finalizer, values[name])
      for name, finalizer in model.metric_finalizers().items()
      if name not in _REPORTED
    }

  return model_lib.Model(
    model_lib.ModelWeights(
      *(tuple(v.numpy() for v in group) for group in weights)
    ),
    model.input_spec,
    refuse,
    refuse,
    model_lib.Metrics(
      lambda: [tf.constant(value) for value in start],
      lambda state, _, output: [
        a + b for a, b in zip(state, output.predictions, strict=True)
      ],
      finalize,
    ),
    forward,
  )
