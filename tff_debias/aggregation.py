"""The mean of the participants' uploads, by any of TFF's aggregators."""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

AggregationFactory = (
  tff.aggregators.WeightedAggregationFactory
  | tff.aggregators.UnweightedAggregationFactory
)


def build_mean(
  factory: AggregationFactory | None, upload_type: tff.StructType
) -> tff.templates.AggregationProcess:
  """Builds the weighted mean of uploads, of each part on its own.

  Args:
    factory: Makes a mean, not a sum; by default `tff.aggregators.MeanFactory`.
      An unweighted factory averages over all clients, with zeros from those of
      weight 0; its result is scaled to the mean of the others, whose weights
      must be 1.
    upload_type: The type of an upload: a struct of named parts, some empty.

  Returns:
    A process whose `next` takes its state, the uploads and float32 weights. Its
    measurements are those of the factory, for each part that has some.

  Raises:
    TypeError: If it is no factory, or changes the type of what it aggregates.
  """
  if factory is None:
    factory = tff.aggregators.MeanFactory(no_nan_division=True)
  is_weighted = isinstance(factory, tff.aggregators.WeightedAggregationFactory)
  parts = {
    name: _create(factory, part_type)
    for name, part_type in tff.structure.iter_elements(upload_type)
    if len(part_type)
  }

  @tff.federated_computation
  def initialize():
    return _zip({name: part.initialize() for name, part in parts.items()})

  means_type = tff.to_type(
    collections.OrderedDict((name, upload_type[name]) for name in parts)
  )
  container = upload_type.python_container

  @tff.tensorflow.computation(means_type, np.float32, np.float32)
  def finish(means, num_clients, weight):
    scale = 1.0
    if not is_weighted:
      scale = tf.math.divide_no_nan(num_clients, weight)
    return container(
      **{
        name: tf.nest.map_structure(lambda mean: mean * scale, means[name])
        if name in parts
        else ()
        for name in container._fields
      }
    )

  @tff.tensorflow.computation
  def one():
    return tf.constant(1.0)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(upload_type, tff.CLIENTS),
    tff.FederatedType(np.float32, tff.CLIENTS),
  )
  def next_fn(state, uploads, weights):
    outputs = {}
    for name, part in parts.items():
      arguments = (weights,) if is_weighted else ()
      outputs[name] = part.next(state[name], uploads[name], *arguments)
    means = tff.federated_map(
      finish,
      (
        _zip({name: output.result for name, output in outputs.items()}),
        tff.federated_sum(tff.federated_eval(one, tff.CLIENTS)),
        tff.federated_sum(weights),
      ),
    )
    return tff.templates.MeasuredProcessOutput(
      _zip({name: output.state for name, output in outputs.items()}),
      means,
      _zip({name: output.measurements for name, output in outputs.items()}),
    )

  return tff.templates.AggregationProcess(initialize, next_fn)


def _zip(values: dict[str, tff.Value]) -> tff.Value:
  return tff.federated_zip(collections.OrderedDict(values))


def _create(
  factory: AggregationFactory, value_type: tff.Type
) -> tff.templates.AggregationProcess:
  if isinstance(factory, tff.aggregators.WeightedAggregationFactory):
    process = factory.create(value_type, tff.TensorType(np.float32))
  elif isinstance(factory, tff.aggregators.UnweightedAggregationFactory):
    process = factory.create(value_type)
  else:
    raise TypeError(
      'model_aggregator must be a tff.aggregators factory, got'
      f' {type(factory).__name__}.'
    )
  result_type = process.next.type_signature.result.result.member
  if not value_type.is_equivalent_to(result_type):
    raise TypeError(
      'model_aggregator must keep the type of what it aggregates, but it makes'
      f' {result_type} of {value_type}.'
    )
  return process
