"""The personalized test, as TFF computations over clients."""

import collections
from collections.abc import Callable
import dataclasses
from typing import Any
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks
from tff_debias import loops
from tff_debias import models
from tff_debias import personalizations

Result: TypeAlias = collections.OrderedDict[str, tf.Tensor]
# From the weights, the training and the test data of a client to its result.
ClientTest: TypeAlias = Callable[
  [models.ModelWeights, tf.data.Dataset, tf.data.Dataset], Result
]

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

  The loss is the model's, without regularization, as in TFF's evaluations. With
  prototypes a test example of a class without one is wrong, and only the loss
  leaves it out.

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
  evaluate = build_client_evaluation(
    model, personalization, max_grad_norm=max_grad_norm
  )
  result_type = evaluate.type_signature.result.member
  # First `is_included` and `num_examples`, then the loss and the metrics.
  names = tff.structure.name_list(result_type)
  table = tff.TensorType(np.float32, [None, len(names)])

  @tff.tensorflow.computation
  def empty_table():
    return tf.zeros([0, len(names)])

  @tff.tensorflow.computation(table, result_type)
  def add_client(table, result):
    row = tf.stack([tf.cast(value, tf.float32) for value in result.values()])
    return tf.concat([table, row[tf.newaxis]], axis=0)

  @tff.tensorflow.computation(table, table)
  def merge(table, other):
    return tf.concat([table, other], axis=0)

  @tff.tensorflow.computation(table)
  def summarize(table):
    valid = tf.boolean_mask(table, table[:, 0] > 0)
    num_examples = valid[:, 1]

    def statistics(weights: tf.Tensor) -> collections.OrderedDict[str, Any]:
      return collections.OrderedDict(
        (name, _statistics(valid[:, i], weights))
        for i, name in enumerate(names[2:], start=2)
      )

    return collections.OrderedDict(
      by_client=statistics(tf.ones_like(num_examples)),
      by_example=statistics(num_examples),
      clients=tf.shape(valid)[0],
      left_out=tf.shape(table)[0] - tf.shape(valid)[0],
      num_examples=tf.cast(tf.reduce_sum(num_examples), tf.int32),
    )

  @tff.federated_computation(*evaluate.type_signature.parameter)
  def personalized_evaluation(weights, data):
    return tff.federated_aggregate(
      evaluate(weights, data), empty_table(), add_client, merge, summarize
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

  The arguments and errors are those of `build_personalized_evaluation`.
  """
  model = models.as_model(model)
  return _build(model, _client_test(model, personalization, max_grad_norm))


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

  The other arguments and errors are those of `build_personalized_evaluation`;
  `num_steps` must be at least 0, and `maml` gives the size of a step.
  """
  checks.check_integer('num_steps', num_steps, minimum=0)
  model = models.as_model(model)
  maml.check_model(model)
  one_step = dataclasses.replace(maml, num_steps=1)
  bound = maml.grad_norm_bound(max_grad_norm)
  test_as_it_is = _client_test(
    model, personalizations.NoPersonalization(), bound
  )

  def test_steps(weights: models.ModelWeights, train: Any, test: Any) -> Result:
    results = [test_as_it_is(weights, train, test)]
    for _ in range(num_steps):
      weights = one_step.personalize(model, weights, train, bound)
      results.append(test_as_it_is(weights, train, test))
    return tf.nest.map_structure(lambda *values: tf.stack(values), *results)

  return _build(model, test_steps)


def build_personalize_fn(
  model: models.Model,
  personalization: personalizations.Personalization,
  batch_size: int,
  *,
  max_grad_norm: float | None = None,
) -> Callable[[], Callable[..., Result]]:
  """Builds the personalized test for TFF's own personalization evaluation.

  TFF passes the data sets unbatched, so `batch_size` is given here. TFF's
  evaluation also takes a function that makes a
  `tff.learning.models.VariableModel`, which must have the weights of `model` in
  the same order. The other arguments and errors are those of
  `build_personalized_evaluation`.

  Returns:
    A value of the `personalize_fn_dict` of
    `tff.learning.algorithms.build_personalization_eval_computation`. Its
    metrics are those of `build_client_evaluation`.
  """
  test_client = models.outside(
    _client_test(models.as_model(model), personalization, max_grad_norm)
  )

  def personalize(
    variable_model: tff.learning.models.VariableModel,
    train: tf.data.Dataset,
    test: tf.data.Dataset,
  ) -> Result:
    weights = models.ModelWeights(
      tuple(v.read_value() for v in variable_model.trainable_variables),
      tuple(v.read_value() for v in variable_model.non_trainable_variables),
    )
    return test_client(weights, train.batch(batch_size), test.batch(batch_size))

  return lambda: personalize


def _build(model: models.Model, test_client: ClientTest) -> tff.Computation:
  """Makes a test of one client a computation for all clients."""
  weights_type = tff.types.tensorflow_to_type(
    models.specs_of(model.initial_weights)
  )
  data_type = tff.SequenceType(tff.types.tensorflow_to_type(model.input_spec))
  data_type = collections.OrderedDict(train=data_type, test=data_type)

  @models.computation(weights_type, data_type)
  def test_on_device(weights, data):
    return test_client(weights, data['train'], data['test'])

  @tff.federated_computation(
    tff.FederatedType(weights_type, tff.SERVER),
    tff.FederatedType(data_type, tff.CLIENTS),
  )
  def client_evaluation(weights, data):
    return tff.federated_map(
      test_on_device, (tff.federated_broadcast(weights), data)
    )

  return client_evaluation


def _client_test(
  model: models.Model,
  personalization: personalizations.Personalization,
  max_grad_norm: float | None,
) -> ClientTest:
  """The personalized test of one client, from its batches."""
  personalization.check_model(model)
  max_grad_norm = personalization.grad_norm_bound(max_grad_norm)

  def test_client(
    weights: models.ModelWeights, train: tf.data.Dataset, test: tf.data.Dataset
  ) -> Result:
    personalized = personalization.personalize(
      model, weights, train, max_grad_norm
    )

    def add_batch(state: Any, batch: Any) -> Any:
      loss_sum, num_losses, num_examples, metrics = state
      result = personalization.evaluate(model, personalized, batch)
      losses = result.num_losses
      if losses is None:
        losses = result.num_examples
      return (
        loss_sum + result.loss * losses,
        num_losses + losses,
        num_examples + result.num_examples,
        model.metrics.update(metrics, result.labels, result.batch_output),
      )

    loss_sum, num_losses, num_examples, metrics = loops.reduce_batches(
      test, (0.0, 0.0, 0.0, model.metrics.initialize()), add_batch
    )
    values = collections.OrderedDict(
      loss=tf.math.divide_no_nan(loss_sum, num_losses),
      **model.metrics.finalize(metrics),
    )
    is_included = loops.has_data(train) & (num_examples > 0)
    for name, value in values.items():
      if not tf.is_tensor(value) or value.shape.rank != 0:
        raise ValueError(
          f'The personalized test needs metrics that are scalars, but {name!r}'
          f' is {models.specs_of(value)}.'
        )
      is_included &= tf.math.is_finite(tf.cast(value, tf.float32))
    return collections.OrderedDict(
      is_included=is_included,
      num_examples=tf.cast(num_examples, tf.int32),
      **{
        name: tf.where(is_included, value, tf.zeros_like(value))
        for name, value in values.items()
      },
    )

  return test_client


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
