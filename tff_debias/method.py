"""The arguments of a learning process, checked, and what follows from them."""

import collections
from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import aggregation
from tff_debias import algorithm as algorithm_lib
from tff_debias import checks
from tff_debias import corrections
from tff_debias import models
from tff_debias import personalizations
from tff_debias import privacy
from tff_debias import storage as storage_lib

LearningRateFn = Callable[[tf.Tensor], tf.Tensor]
#: As `tff.learning.metrics.sum_then_finalize`.
MetricsAggregator = Callable[[Callable[..., Any], tff.Type], Any]
Hparams = collections.OrderedDict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """The arguments of `build_learning_process`, with the same names.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range, or missing for this method.
  """

  model: models.Model
  personalization: personalizations.Personalization
  correction: corrections.Correction
  learning_rate: float
  learning_rate_fn: LearningRateFn | None
  weight_decay: float
  max_grad_norm: float | None
  num_clients: int | None
  storage: storage_lib.ClientStorage | None
  track_all: bool
  client_weighting: tff.learning.ClientWeighting
  model_aggregator: aggregation.AggregationFactory | None
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None
  max_update_norm: float | None
  metrics_aggregator: MetricsAggregator
  seed: int

  def __post_init__(self):
    for name, expected in (
      ('personalization', personalizations.Personalization),
      ('correction', corrections.Correction),
      ('client_weighting', tff.learning.ClientWeighting),
    ):
      checks.check_type(name, getattr(self, name), expected)
    checks.check_number('learning_rate', self.learning_rate, positive=True)
    checks.check_number('weight_decay', self.weight_decay)
    checks.check_integer('seed', self.seed, minimum=0)
    if self.max_grad_norm is not None:
      checks.check_number(
        'max_grad_norm', self.max_grad_norm, positive=True, finite=False
      )
    if self.max_update_norm is not None:
      checks.check_number(
        'max_update_norm', self.max_update_norm, positive=True, finite=False
      )
    if self.learning_rate_fn is not None and not callable(
      self.learning_rate_fn
    ):
      raise TypeError(
        'learning_rate_fn must be a function from the number of rounds done to'
        ' the learning rate, such as exponential_decay(0.1, 0.997), got'
        f' {self.learning_rate_fn!r}.'
      )
    if not callable(self.metrics_aggregator):
      raise TypeError(
        'metrics_aggregator must be a function such as'
        ' tff.learning.metrics.secure_sum_then_finalize, got'
        f' {self.metrics_aggregator!r}.'
      )
    self.personalization.check_model(self.model)
    self._check_optimizers()
    self._check_client_weighting()
    if self.keeps_state:
      self._check_population()

  def _check_optimizers(self) -> None:
    correction = self.correction
    for name, is_allowed, reason in (
      (
        'client_optimizer_fn',
        correction.allows_client_optimizer,
        'is right for plain SGD only',
      ),
      (
        'server_optimizer_fn',
        correction.allows_server_optimizer,
        'has a server step of its own',
      ),
    ):
      optimizer = getattr(self, name)
      if optimizer is not None:
        if not isinstance(optimizer, tff.learning.optimizers.Optimizer):
          raise TypeError(
            f'{name} must be a TFF optimizer, such as'
            ' tff.learning.optimizers.build_sgdm(0.1), and not a Keras'
            f' optimizer or a function that makes one, got {optimizer!r}.'
          )
        if not is_allowed:
          raise ValueError(
            f'{correction} {reason}: {name} must be None, got {optimizer!r}.'
          )

  def _check_client_weighting(self) -> None:
    if self.is_weighted_by_examples and self.keeps_state:
      raise ValueError(
        'client_weighting must be UNIFORM with a correction or track_all, whose'
        ' means over the population are uniform, got'
        f' {self.client_weighting}.'
      )
    if self.is_weighted_by_examples and isinstance(
      self.model_aggregator, tff.aggregators.UnweightedAggregationFactory
    ):
      raise ValueError(
        f'client_weighting must be UNIFORM with {self.model_aggregator!r}, a'
        f' model_aggregator without weights, got {self.client_weighting}.'
      )

  def _check_population(self) -> None:
    reason = self.state_reason
    try:
      checks.check_integer('num_clients', self.num_clients)
    except ValueError as e:
      raise ValueError(
        f'{reason} needs the number of clients in the population: {e}'
      ) from None
    if not isinstance(self.storage, storage_lib.ClientStorage):
      raise ValueError(
        f'{reason} keeps a state on every client and needs storage, a'
        f' ClientStorage(folder), got {self.storage!r}.'
      )

  @property
  def is_weighted_by_examples(self) -> bool:
    """Whether the mean over participants is weighted by their examples."""
    examples = tff.learning.ClientWeighting.NUM_EXAMPLES
    return self.client_weighting is examples

  @property
  def num_planned(self) -> float | None:
    """The fixed number that sums of updates are divided by, if one is."""
    if isinstance(self.model_aggregator, privacy.BoundedMeanFactory):
      return self.model_aggregator.num_planned
    return None

  @property
  def state_reason(self) -> str:
    """What makes clients keep a state, for messages."""
    return 'track_all' if self.track_all else repr(self.correction)

  @functools.cached_property
  def keeps_state(self) -> bool:
    """Whether clients keep a state from round to round."""
    with tf.Graph().as_default():
      weights = self.model.initial_weights.trainable
      weights = tf.nest.map_structure(tf.constant, weights)
      return bool(tf.nest.flatten(self.initial_memories(weights)))

  def initial_memories(
    self, weights: corrections.Weights
  ) -> algorithm_lib.Memories:
    """The states of a client that never took part."""
    return algorithm_lib.initial_memories(self._algorithm, weights)

  @property
  def hparams(self) -> collections.OrderedDict[str, float]:
    """The hyperparameters of the learning process at its start."""
    hparams = collections.OrderedDict(weight_decay=self.weight_decay)
    if self.learning_rate_fn is None:
      hparams['learning_rate'] = self.learning_rate
    for name in self.correction.hparams:
      hparams[name] = getattr(self.correction, name)
    return collections.OrderedDict(
      (name, float(value)) for name, value in sorted(hparams.items())
    )

  def algorithm(self, hparams: Hparams) -> algorithm_lib.Algorithm:
    """The algorithm, with the present hyperparameters of its correction."""
    correction = self.correction.with_hparams(
      {name: hparams[name] for name in self.correction.hparams}
    )
    return dataclasses.replace(self._algorithm, correction=correction)

  def client_seed(
    self, round_num: tf.Tensor, client_id: tf.Tensor
  ) -> tf.Tensor:
    """The seed of a client in a round, an int32 tensor `[2]`."""
    seed = tf.constant([self.seed % 2**31, self.seed // 2**31 % 2**31])
    seed = tf.random.fold_in(seed, round_num)
    hashed = tf.strings.to_hash_bucket_fast(client_id, 2**31 - 1)
    return tf.random.fold_in(seed, tf.cast(hashed, tf.int32))

  @property
  def _algorithm(self) -> algorithm_lib.Algorithm:
    max_update_norm = self.max_update_norm or math.inf
    if isinstance(self.model_aggregator, privacy.BoundedMeanFactory):
      max_update_norm = min(
        max_update_norm, self.model_aggregator.max_update_norm
      )
    return algorithm_lib.Algorithm(
      model=self.model,
      personalization=self.personalization,
      correction=self.correction,
      max_grad_norm=self.personalization.grad_norm_bound(self.max_grad_norm),
      track_all=self.track_all,
      client_optimizer=(
        self.client_optimizer_fn or tff.learning.optimizers.build_sgdm()
      ),
      server_optimizer=self.server_optimizer_fn,
      max_update_norm=float(max_update_norm),
    )


def exponential_decay(learning_rate: float, decay: float) -> LearningRateFn:
  """The learning rate β_t = β · decay^t of the paper.

  Args:
    learning_rate: β.
    decay: The factor of each round; 0.997 in the paper.

  Returns:
    A `learning_rate_fn`.

  Raises:
    ValueError: If an argument is not a positive finite number.
  """
  checks.check_number('learning_rate', learning_rate, positive=True)
  checks.check_number('decay', decay, positive=True)
  return lambda round_num: (
    learning_rate * tf.pow(float(decay), tf.cast(round_num, tf.float32))
  )
