"""What clients report of a round beside their updates, summed and checked."""

import collections
from typing import Any
from typing import NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import algorithm as algorithm_lib
from tff_debias import method as method_lib
from tff_debias import models


class Counts(NamedTuple):
  """The nonnegative integers of a client that the server sums, or their sums.

  `receipt` is `()` if clients keep no states. Else it is the `is_new` and the
  `fingerprint` of a `storage.Receipt`, and the fingerprint of the state that
  the client had before.
  """

  clients: Any
  participants: Any
  num_steps: Any
  squared_steps: Any
  receipt: tuple[Any, ...]


# The most steps that a secure sum counts for a client.
_MAX_STEPS = 2**20
_MAX_FINGERPRINT = 2**31 - 1
_MAX_COUNTS = Counts(1, 1, _MAX_STEPS, _MAX_STEPS**2, ())
_MAX_RECEIPT = (1, _MAX_FINGERPRINT, _MAX_FINGERPRINT)
# The largest number that TFF's secure metrics add as well.
_MAX_NORM = 2.0**20 - 1


class Report(NamedTuple):
  """What a client reports, and the aggregated reports of all clients.

  `metrics` are the unfinalized ones of a client, and the finalized ones of all.
  """

  counts: Counts
  correction_norm: tf.Tensor
  metrics: collections.OrderedDict[str, Any]


def of_client(
  result: algorithm_lib.ClientUpdate,
  is_included: tf.Tensor,
  receipt: tuple[Any, ...],
) -> Report:
  """The report of a client on its own work.

  Args:
    result: Its work.
    is_included: Whether it counts, a bool scalar.
    receipt: As in `Counts`.

  Returns:
    The report.
  """
  sums = result.sums
  num_steps = tf.cast(sums.num_steps, tf.int64)
  return Report(
    Counts(
      clients=tf.constant(1),
      participants=tf.cast(is_included, tf.int32),
      num_steps=num_steps,
      squared_steps=tf.square(num_steps),
      receipt=receipt,
    ),
    correction_norm=tf.where(is_included, norm(result.memories[0]), 0.0),
    metrics=collections.OrderedDict(
      loss=[sums.loss_sum, sums.num_examples],
      metrics=sums.metrics,
      num_examples=sums.num_examples,
    ),
  )


def build_sum(
  method: method_lib.Method, report_type: tff.StructType
) -> tff.Computation:
  """Builds the aggregation of reports.

  Args:
    method: The method.
    report_type: The type of a client's report.

  Returns:
    A computation from reports at the clients to their sum at the server. All of
    its sums are secure if those of the method's `metrics_aggregator` are.
  """

  @models.outside
  def finalize(unfinalized):
    loss_sum, num_examples = unfinalized['loss']
    return collections.OrderedDict(
      loss=tf.math.divide_no_nan(loss_sum, num_examples),
      **method.model.metrics.finalize(unfinalized['metrics']),
      num_examples=tf.cast(tf.round(unfinalized['num_examples']), tf.int32),
    )

  clients_report = tff.FederatedType(report_type, tff.CLIENTS)
  if method.metrics_aggregator is tff.learning.metrics.sum_then_finalize:
    # The same in one sum: TFF takes a call for each client and each sum.
    @tff.tensorflow.computation(report_type)
    def finalize_sum(report):
      return report._replace(metrics=finalize(report.metrics))

    @tff.federated_computation(clients_report)
    def sum_at_once(report):
      return tff.federated_map(finalize_sum, tff.federated_sum(report))

    return sum_at_once

  aggregate = method.metrics_aggregator(finalize, report_type.metrics)

  @tff.federated_computation(
    tff.FederatedType(report_type.metrics, tff.CLIENTS)
  )
  def aggregate_metrics(metrics):
    return aggregate(metrics)

  try:
    tff.test.assert_not_contains_unsecure_aggregation(aggregate_metrics)
    is_secure = True
  except AssertionError:
    is_secure = False
  bounds = _MAX_COUNTS
  if method.keeps_state:
    bounds = bounds._replace(receipt=_MAX_RECEIPT)

  @tff.federated_computation(clients_report)
  def sum_report(report):
    if is_secure:
      # A client with a count above its bound is an error.
      counts = tff.federated_secure_sum(report.counts, bounds)
      correction_norm = tff.aggregators.secure_quantized_sum(
        report.correction_norm, 0.0, _MAX_NORM
      )
    else:
      counts = tff.federated_sum(report.counts)
      correction_norm = tff.federated_sum(report.correction_norm)
    return tff.federated_zip(
      Report(counts, correction_norm, aggregate_metrics(report.metrics))
    )

  return sum_report


def mean_steps(algorithm: algorithm_lib.Algorithm, counts: Counts) -> tf.Tensor:
  """The mean over the participants of the number K of local steps.

  If the correction needs `equal_steps`, TensorFlow fails where they differ.
  """
  num_steps = tf.cast(counts.num_steps, tf.float32)
  mean = tf.math.divide_no_nan(
    num_steps, tf.cast(counts.participants, tf.float32)
  )
  if not algorithm.correction.equal_steps:
    return mean
  # Cauchy's inequality, in whole numbers: (Σ K)² = p Σ K² if all K are equal.
  is_equal = tf.equal(
    tf.square(counts.num_steps),
    tf.cast(counts.participants, tf.int64) * counts.squared_steps,
  )
  # tf.debugging.Assert puts its check into a branch if it has a float to show,
  # and TensorFlow's optimizer removes the branch.
  check = tf.raw_ops.Assert(
    condition=is_equal,
    data=[
      f'{algorithm.correction} needs participants with the same number of local'
      ' steps, but they differ in this round. Give each the same number of'
      ' batches, or use equal_steps=False. The mean number is',
      mean,
    ],
  )
  with tf.control_dependencies([check]):
    return tf.identity(mean)


def client_metrics(report: Report) -> collections.OrderedDict[str, Any]:
  """The metrics of a round that the sum of all reports gives."""
  counts = report.counts
  return collections.OrderedDict(
    train=report.metrics,
    participants=counts.participants,
    left_out=counts.clients - counts.participants,
    correction_norm=tf.math.divide_no_nan(
      report.correction_norm, tf.cast(counts.participants, tf.float32)
    ),
  )


def norm(tensors: Any) -> tf.Tensor:
  """The norm of all tensors together; 0 of none."""
  return tf.linalg.global_norm([tf.zeros([]), *tensors])
