"""The personalized test, as TFF computations over clients."""

import collections
from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks
from tff_debias import loops
from tff_debias import models
from tff_debias import personalizations

_QUANTILES = (0.1, 0.5, 0.9)


def build_personalized_evaluation(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  max_grad_norm: float | None = None,
) -> tff.Computation:
  """Builds the personalized test: every client personalizes, then is tested.

  Its type is `(<M@SERVER, {<train=D*,test=D*>}@CLIENTS> -> metrics@SERVER)`,
  with M the `tff.learning.models.ModelWeights` and D a batch of the model. Both
  data sets hold each example once, in batches of any size.

  >>> evaluate = tff_debias.build_personalized_evaluation(
  ...   model, tff_debias.Proto()
  ... )
  >>> evaluate(weights, clients)['by_client']['accuracy']['mean']

  The metrics are an `OrderedDict`. `by_client` gives every client the same
  weight, and `by_example` the number of its test examples. Both hold the loss
  and every metric of the model, and for each of these `mean`, `min`, `max`,
  `q10`, `q50` and `q90`, float32. A quantile is the smallest value that has at
  least its share of the weight at or below it. `clients`, `left_out` and
  `num_examples`, int32, are counts. A client without training or test data, or
  without a finite result, is left out.

  Args:
    model: As `build_learning_process` takes it. Its metrics must be scalars.
    personalization: T_i.
    max_grad_norm: The bound on the norm of a gradient; `math.inf` for none. By
      default the personalization's `default_max_grad_norm`, 10 for `Maml`.

  Returns:
    The computation.

  Raises:
    TypeError: If `model` is no model.
    ValueError: If the model cannot be personalized this way.
  """
  model = models.as_model(model)
  test_client = _build_client_test(model, personalization, max_grad_norm)
  weights_type, client_type = test_client.type_signature.parameter
  names = list(_metrics_spec(model))
  table = tff.TensorType(np.float32, [None, len(names) + 2])

  @tff.tensorflow.computation
  def empty_table():
    return tf.zeros([0, len(names) + 2])

  @tff.tensorflow.computation(table, test_client.type_signature.result)
  def add_client(table, result):
    columns = ['is_included', 'num_examples', *names]
    row = tf.stack([tf.cast(result[name], tf.float32) for name in columns])
    return tf.concat([table, row[tf.newaxis]], axis=0)

  @tff.tensorflow.computation(table, table)
  def merge(table, other):
    return tf.concat([table, other], axis=0)

  @tff.tensorflow.computation(table)
  def summarize(table):
    valid = tf.boolean_mask(table, table[:, 0] > 0)
    num_examples = valid[:, 1]

    def statistics(weights: tf.Tensor):
      return collections.OrderedDict(
        (name, _statistics(valid[:, i], weights))
        for i, name in enumerate(names, start=2)
      )

    return collections.OrderedDict(
      by_client=statistics(tf.ones_like(num_examples)),
      by_example=statistics(num_examples),
      clients=tf.shape(valid)[0],
      left_out=tf.shape(table)[0] - tf.shape(valid)[0],
      num_examples=tf.cast(tf.reduce_sum(num_examples), tf.int32),
    )

  @tff.federated_computation(
    tff.FederatedType(weights_type, tff.SERVER),
    tff.FederatedType(client_type, tff.CLIENTS),
  )
  def personalized_evaluation(weights, data):
    results = tff.federated_map(
      test_client, (tff.federated_broadcast(weights), data)
    )
    return tff.federated_aggregate(
      results, empty_table(), add_client, merge, summarize
    )

  return personalized_evaluation


def build_client_evaluation(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  max_grad_norm: float | None = None,
) -> tff.Computation:
  """Builds the personalized test with a result for each client.

  Its type is `(<M@SERVER, {<train=D*,test=D*>}@CLIENTS> -> {R}@CLIENTS)`. R is
  an `OrderedDict` of `is_included`, false for a client that
  `build_personalized_evaluation` leaves out; `num_examples`; `loss`; and the
  metrics. All are scalars, and 0 for a client that is left out. It is only for
  simulation: a deployed device keeps its result to itself.

  Args:
    model: As `build_learning_process` takes it. Its metrics must be scalars.
    personalization: T_i.
    max_grad_norm: The bound on the norm of a gradient; `math.inf` for none. By
      default the personalization's `default_max_grad_norm`, 10 for `Maml`.

  Returns:
    The computation.

  Raises:
    TypeError: If `model` is no model.
    ValueError: If the model cannot be personalized this way.
  """
  model = models.as_model(model)
  return _for_each_client(
    _build_client_test(model, personalization, max_grad_norm)
  )


def build_step_evaluation(
  model: models.Model,
  maml: personalizations.Maml,
  num_steps: int,
  *,
  max_grad_norm: float | None = None,
) -> tff.Computation:
  """As `build_client_evaluation`, after each of MAML's steps.

  Every value of R is a vector `[num_steps + 1]`: of the meta-model, then of the
  model after 1, 2, … steps. Every step is taken once.

  Args:
    model: As `build_learning_process` takes it. Its metrics must be scalars.
    maml: The personalization, for the size of a step.
    num_steps: The number of steps, at least 0.
    max_grad_norm: The bound on the norm of a gradient; `math.inf` for none. By
      default the personalization's `default_max_grad_norm`, 10 for `Maml`.

  Returns:
    The computation.

  Raises:
    TypeError: If `model` is no model.
    ValueError: If `num_steps` is no such number, or the model cannot be
      personalized this way.
  """
  checks.check_integer('num_steps', num_steps, minimum=0)
  model = models.as_model(model)
  max_grad_norm = maml.grad_norm_bound(max_grad_norm)
  one_step = dataclasses.replace(maml, num_steps=1)
  as_it_is = personalizations.NoPersonalization()

  def test(weights: models.ModelWeights, train: Any, test: Any):
    results = []
    for step in range(num_steps + 1):
      if step:
        weights = one_step.personalize(model, weights, train, max_grad_norm)
      results.append(
        _test(model, as_it_is, max_grad_norm, weights, train, test)
      )
    return tf.nest.map_structure(lambda *values: tf.stack(values), *results)

  return _for_each_client(_build_client_computation(model, one_step, test))


def build_personalize_fn(
  model: models.Model,
  personalization: personalizations.Personalization,
  batch_size: int,
  *,
  max_grad_norm: float | None = None,
) -> Callable[[], Callable[..., collections.OrderedDict[str, tf.Tensor]]]:
  """Builds the personalized test for TFF's own personalization evaluation.

  Args:
    model: As `build_learning_process` takes it. TFF's evaluation takes a
      function that makes a `tff.learning.models.VariableModel`, which must have
      the same weights in the same order.
    personalization: T_i.
    batch_size: The batch size of both data sets, which TFF passes on unbatched.
    max_grad_norm: The bound on the norm of a gradient; `math.inf` for none. By
      default the personalization's `default_max_grad_norm`, 10 for `Maml`.

  Returns:
    A value of the `personalize_fn_dict` of
    `tff.learning.algorithms.build_personalization_eval_computation`. Its
    metrics are those of `build_client_evaluation`.

  Raises:
    TypeError: If `model` is no model.
    ValueError: If the model cannot be personalized this way.
  """
  model = models.as_model(model)
  max_grad_norm = personalization.grad_norm_bound(max_grad_norm)
  personalization.check_model(model)

  @models.outside
  def test_client(weights: models.ModelWeights, train: Any, test: Any):
    return _test(model, personalization, max_grad_norm, weights, train, test)

  def build() -> Callable[..., collections.OrderedDict[str, tf.Tensor]]:
    def personalize(
      variable_model: tff.learning.models.VariableModel,
      train: tf.data.Dataset,
      test: tf.data.Dataset,
    ) -> collections.OrderedDict[str, tf.Tensor]:
      weights = models.ModelWeights(
        tuple(v.read_value() for v in variable_model.trainable_variables),
        tuple(v.read_value() for v in variable_model.non_trainable_variables),
      )
      return test_client(
        weights, train.batch(batch_size), test.batch(batch_size)
      )

    return personalize

  return build


def _metrics_spec(model: models.Model) -> dict[str, tf.TensorSpec]:
  """The loss and the metrics of the model, by name."""
  for name, spec in model.metrics_spec.items():
    if not isinstance(spec, tf.TensorSpec) or spec.shape.rank != 0:
      raise ValueError(
        f'The personalized test needs metrics that are scalars, but {name!r}'
        f' is {spec}.'
      )
  return {'loss': tf.TensorSpec([], tf.float32), **model.metrics_spec}


def _build_client_test(
  model: models.Model,
  personalization: personalizations.Personalization,
  max_grad_norm: float | None,
) -> tff.Computation:
  max_grad_norm = personalization.grad_norm_bound(max_grad_norm)

  def test(weights: models.ModelWeights, train: Any, test: Any):
    return _test(model, personalization, max_grad_norm, weights, train, test)

  return _build_client_computation(model, personalization, test)


def _build_client_computation(
  model: models.Model,
  personalization: personalizations.Personalization,
  test: Callable[..., collections.OrderedDict[str, tf.Tensor]],
) -> tff.Computation:
  """`test(weights, train, test)` as a computation of one client."""
  personalization.check_model(model)
  _metrics_spec(model)
  weights_type = tff.types.tensorflow_to_type(
    models.specs_of(model.initial_weights)
  )
  data_type = tff.SequenceType(tff.types.tensorflow_to_type(model.input_spec))

  @models.computation(
    weights_type, collections.OrderedDict(train=data_type, test=data_type)
  )
  def test_client(weights, data):
    return test(weights, data['train'], data['test'])

  return test_client


def _for_each_client(test_client: tff.Computation) -> tff.Computation:
  weights_type, client_type = test_client.type_signature.parameter

  @tff.federated_computation(
    tff.FederatedType(weights_type, tff.SERVER),
    tff.FederatedType(client_type, tff.CLIENTS),
  )
  def client_evaluation(weights, data):
    return tff.federated_map(
      test_client, (tff.federated_broadcast(weights), data)
    )

  return client_evaluation


def _test(
  model: models.Model,
  personalization: personalizations.Personalization,
  max_grad_norm: float,
  weights: models.ModelWeights,
  train: tf.data.Dataset,
  test: tf.data.Dataset,
) -> collections.OrderedDict[str, tf.Tensor]:
  """The result of one client, from its batches."""
  personalized = personalization.personalize(
    model, weights, train, max_grad_norm
  )

  def add_batch(state: Any, batch: Any) -> Any:
    loss_sum, num_examples, metrics = state
    result = personalization.evaluate(model, personalized, batch)
    return (
      loss_sum + result.loss * result.num_examples,
      num_examples + result.num_examples,
      model.metrics.update(metrics, result.labels, result.batch_output),
    )

  loss_sum, num_examples, metrics = loops.reduce_batches(
    test, (0.0, 0.0, model.metrics.initialize()), add_batch
  )
  values = collections.OrderedDict(
    loss=tf.math.divide_no_nan(loss_sum, num_examples),
    **model.metrics.finalize(metrics),
  )
  is_included = _has_data(train) & (num_examples > 0)
  for value in values.values():
    is_included &= tf.math.is_finite(tf.cast(value, tf.float32))
  return collections.OrderedDict(
    is_included=is_included,
    num_examples=tf.cast(num_examples, tf.int32),
    **{
      name: tf.where(is_included, value, tf.zeros_like(value))
      for name, value in values.items()
    },
  )


def _has_data(dataset: tf.data.Dataset) -> tf.Tensor:
  cardinality = dataset.cardinality()
  return tf.cond(
    tf.equal(cardinality, tf.data.UNKNOWN_CARDINALITY),
    lambda: loops.reduce_batches(dataset.take(1), False, lambda *_: True),
    # It takes a millisecond to make an iterator.
    lambda: tf.not_equal(cardinality, 0),
  )


def _statistics(
  values: tf.Tensor, weights: tf.Tensor
) -> collections.OrderedDict[str, tf.Tensor]:
  """Weighted statistics of a vector; all 0 if it is empty."""
  order = tf.argsort(values)
  values, weights = tf.gather(values, order), tf.gather(weights, order)
  shares = tf.math.divide_no_nan(tf.cumsum(weights), tf.reduce_sum(weights))

  def at(place: tf.Tensor | int) -> tf.Tensor:
    return tf.reduce_sum(values[place : place + 1])

  def quantile(q: float) -> tf.Tensor:
    # In float32, a share that equals q may come out slightly below q.
    below = tf.reduce_sum(tf.cast(shares < q - 1e-6, tf.int32))
    return at(tf.minimum(below, tf.size(values) - 1))

  return collections.OrderedDict(
    mean=tf.math.divide_no_nan(
      tf.reduce_sum(values * weights), tf.reduce_sum(weights)
    ),
    min=at(0),
    max=at(tf.size(values) - 1),
    **{f'q{100 * q:.0f}': quantile(q) for q in _QUANTILES},
  )
