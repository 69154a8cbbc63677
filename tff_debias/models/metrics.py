"""Makes Keras metrics functions of their state."""

import collections
from collections.abc import Mapping
import inspect
from typing import Any

import tensorflow as tf

from tff_debias.models import model as model_lib
from tff_debias.models import stand_ins
from tff_debias.models import tracing


def from_metrics(given: Any, y_spec: Any, predictions_spec: Any):
  """Makes the `Metrics` of a model.

  The state is a list of tensors for each metric: TFF's secure sums take a tuple
  for bounds. As in Keras, a mask of the predictions, which keeps the padding of
  sequences out, is given to the metric as `sample_weight`.

  Args:
    given: As the argument `metrics` of `from_keras`.
    y_spec: The `tf.TensorSpec`s of the labels.
    predictions_spec: The `tf.TensorSpec`s of the predictions.

  Returns:
    The metrics.

  Raises:
    TypeError: If these are no metrics.
    ValueError: If two have the same name.
  """
  metrics = _make(given)
  for metric in metrics.values():
    # F1Score and others make their variables when they are updated first.
    with stand_ins.standing_for(metric):
      tracing.trace(
        lambda y, p, metric=metric: _update(metric, y, p),
        y_spec,
        predictions_spec,
      )
  start = {
    name: [v.numpy() for v in metric.variables]
    for name, metric in metrics.items()
  }

  def initialize():
    return tf.nest.map_structure(tf.constant, collections.OrderedDict(start))

  def update(state, labels, batch_output):
    new = collections.OrderedDict()
    for name, metric in metrics.items():
      with stand_ins.standing_for(metric, metric.variables, state[name]) as new[
        name
      ]:
        _update(metric, labels, batch_output.predictions)
    return new

  def finalize(state):
    values = collections.OrderedDict()
    for name, metric in metrics.items():
      with stand_ins.standing_for(metric, metric.variables, state[name]):
        values[name] = tf.nest.map_structure(
          tf.convert_to_tensor, tracing.call(metric.result)
        )
    return values

  return model_lib.Metrics(initialize, update, finalize)


def _update(
  metric: tf.keras.metrics.Metric, labels: Any, predictions: Any
) -> None:
  mask = getattr(predictions, '_keras_mask', None)
  if mask is None:
    tracing.call(metric.update_state, labels, predictions)
    return
  if not _takes_weights(metric):
    raise ValueError(
      f'The metric {metric.name!r} must take sample_weight in its update_state:'
      ' the predictions have a mask, which keeps padding out.'
    )
  weight = tf.cast(mask, tf.float32)
  tracing.call(metric.update_state, labels, predictions, sample_weight=weight)


def _takes_weights(metric: tf.keras.metrics.Metric) -> bool:
  # Keras wraps the method of the object.
  update = type(metric).update_state
  parameters = inspect.signature(update).parameters.values()
  return any(
    p.name == 'sample_weight' or p.kind == p.VAR_KEYWORD for p in parameters
  )


def _make(given: Any) -> Mapping[str, tf.keras.metrics.Metric]:
  """The metrics by name, made anew, so that they begin without an example."""
  kind = tf.keras.metrics.Metric
  if given is None:
    return {}
  if isinstance(given, Mapping):
    made = {name: make() for name, make in given.items()}
  elif callable(given) and not isinstance(given, kind):
    made = given()
  else:
    raise TypeError(
      'metrics must be a function that makes the metrics, or their class, and'
      f' no metric, got {given!r}.'
    )
  metrics = [made] if isinstance(made, kind) else made
  if not isinstance(metrics, Mapping):
    names = [getattr(metric, 'name', None) for metric in metrics]
    if len(set(names)) < len(names):
      raise ValueError(f'The metrics need different names, got {names}.')
    metrics = dict(zip(names, metrics, strict=True))
  if not all(isinstance(metric, kind) for metric in metrics.values()):
    raise TypeError(f'metrics must make Keras metrics, got {made!r}.')
  return metrics
