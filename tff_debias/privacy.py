"""Aggregators that keep one client's update private, and what they spend."""

from collections.abc import Iterator
from typing import Any

import dp_accounting
import numpy as np
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_debias import checks

_SAMPLINGS = ('fixed_size', 'poisson', 'unknown')


class BoundedMeanFactory(tff.aggregators.UnweightedAggregationFactory):
  """A mean of updates that each client clips before it uses or sends them.

  `dp_aggregator` and `secure_aggregator` make it. `build_learning_process`
  takes the bound from it: the client clips its update to the norm before it
  changes its own state by it, so that the server's mean of the states stays
  that of the clients. What the aggregator clips again is below its bound.

  Attributes:
    max_update_norm: The bound on the norm of an update, all layers together.
    num_planned: The fixed number that the sum is divided by; `None` for the
      number of clients.
  """

  def __init__(
    self,
    factory: tff.aggregators.UnweightedAggregationFactory,
    max_update_norm: float,
    num_planned: float | None = None,
  ):
    """Wraps the factory that does the work."""
    self._factory = factory
    self.max_update_norm = max_update_norm
    self.num_planned = num_planned

  def create(self, value_type: tff.Type) -> tff.templates.AggregationProcess:
    """See base class."""
    return self._factory.create(value_type)


def dp_aggregator(
  noise_multiplier: float,
  clients_per_round: int,
  clip_norm: float,
  *,
  secure: bool = False,
) -> BoundedMeanFactory:
  """Gaussian differential privacy of clients, for any correction.

  A client clips its update u to C. The server adds noise N(0, (z C)²) once to
  Σ_S u. It moves the model by this sum over the planned number of clients, and
  h of Dyn (c of Scaf) by the same sum over m, as if it were the clients' own.
  So h is the mean of λ_i plus the noise of all rounds, each with the standard
  deviation α z C / m.

  Only the update is protected, and so only the update may be sent. Metrics, and
  the number of participants, are not part of ε.

  >>> process = tff_debias.build_learning_process(
  ...     model, personalization, tff_debias.Dyn(alpha=0.1),
  ...     num_clients=1000, storage=storage,
  ...     model_aggregator=tff_debias.dp_aggregator(1.0, 100, 0.5),
  ... )

  Args:
    noise_multiplier: z, the noise's standard deviation over C.
    clients_per_round: The planned number of participants, the denominator also
      where there are fewer.
    clip_norm: C.
    secure: Whether the server sees nothing but the sum, as with
      `secure_aggregator`.

  Returns:
    A `model_aggregator` for `build_learning_process`.

  Raises:
    ValueError: If an argument is out of range.
  """
  checks.check_number('noise_multiplier', noise_multiplier)
  checks.check_integer('clients_per_round', clients_per_round)
  checks.check_number('clip_norm', clip_norm, positive=True)
  clip_norm, num_planned = float(clip_norm), float(clients_per_round)
  query = tfp.NormalizedQuery(
    tfp.GaussianSumQuery(clip_norm, clip_norm * float(noise_multiplier)),
    num_planned,
  )
  factory = tff.aggregators.DifferentiallyPrivateFactory(
    query, tff.aggregators.SecureSumFactory(clip_norm) if secure else None
  )
  return BoundedMeanFactory(factory, clip_norm, num_planned)


def secure_aggregator(max_update_norm: float) -> BoundedMeanFactory:
  """A mean of which the server sees nothing but the sum, for any correction.

  A secure sum adds integers, so each number of an update must have a bound. It
  is rounded to a multiple of 2 C / 2^32. TFF's own `secure_aggregator` adapts
  its bounds and clips to them after the client changed its state, so that it is
  only for methods without one.

  Args:
    max_update_norm: C, to which a client clips its update.

  Returns:
    A `model_aggregator` for `build_learning_process`.

  Raises:
    ValueError: If the bound is not a positive finite number.
  """
  checks.check_number('max_update_norm', max_update_norm, positive=True)
  max_update_norm = float(max_update_norm)
  factory = tff.aggregators.UnweightedMeanFactory(
    tff.aggregators.SecureSumFactory(max_update_norm),
    tff.aggregators.SecureSumFactory(1, 0),
  )
  return BoundedMeanFactory(factory, max_update_norm)


def privacy_spent(
  state: tff.learning.templates.LearningAlgorithmState,
  *,
  num_clients: int,
  clients_per_round: int,
  delta: float,
  sampling: str = 'fixed_size',
) -> tuple[float, float]:
  """The ε and δ of all rounds and uploads that led to a state.

  By Rényi differential privacy of the subsampled Gaussian mechanism: the true ε
  is this or less. All uploads of a round are one release of the same clients.
  The rounds must have had the same aggregator.

  Args:
    state: A state of a process whose `model_aggregator` is a `dp_aggregator`,
      or one of TFF's with Gaussian noise.
    num_clients: m, the number of clients in the population.
    clients_per_round: How many of them take part in a round; on average if
      `sampling` is `'poisson'`.
    delta: δ, below 1 / m.
    sampling: How a round's clients were chosen.

      * `'fixed_size'`: exactly `clients_per_round` clients, drawn uniformly
        without replacement, as by `tff.simulation.build_uniform_sampling_fn`. ε
        is that of replacing a client by another, which changes the sum by up to
        2 C.
      * `'poisson'`: each client by a draw of its own, with the probability
        `clients_per_round` / m. ε is that of adding or removing a client, as
        most papers report it.
      * `'unknown'`: in a way that an adversary may know. ε is that of adding or
        removing a client, without the gain of sampling.

  Returns:
    ε and δ. ε is 0 before the first round, and infinite without noise.

  Raises:
    ValueError: If an argument is out of range, or the state is not that of a
      process with Gaussian noise.
  """
  checks.check_integer('num_clients', num_clients)
  checks.check_integer('clients_per_round', clients_per_round)
  checks.check_number('delta', delta, positive=True)
  if clients_per_round > num_clients:
    raise ValueError(
      f'clients_per_round must be at most num_clients, {num_clients}, got'
      f' {clients_per_round}.'
    )
  if delta >= 1:
    raise ValueError(f'delta must be below 1, got {delta!r}.')
  if sampling not in _SAMPLINGS:
    raise ValueError(f'sampling must be one of {_SAMPLINGS}, got {sampling!r}.')
  releases = list(_dp_states(state.aggregator['process']))
  if not releases:
    raise ValueError(
      'The state is not that of a process with differential privacy: build it'
      ' with model_aggregator=dp_aggregator(...).'
    )
  num_rounds = int(state.client_work['round'])
  releases = [release for release in releases if not release.is_init_state]
  if not num_rounds or not releases:
    return 0.0, delta
  precision = sum(
    _precision(dp_accounting.DpEvent.from_named_tuple(release.dp_event))
    for release in releases
  )
  if np.isinf(precision):
    return float('inf'), delta
  noise = precision**-0.5
  neighbors = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  if sampling == 'fixed_size':
    neighbors = dp_accounting.NeighboringRelation.REPLACE_ONE
    # dp_accounting takes the noise over the sensitivity, which is 2 C here.
    event = dp_accounting.SampledWithoutReplacementDpEvent(
      num_clients, clients_per_round, dp_accounting.GaussianDpEvent(noise / 2)
    )
  elif sampling == 'poisson':
    event = dp_accounting.PoissonSampledDpEvent(
      clients_per_round / num_clients, dp_accounting.GaussianDpEvent(noise)
    )
  else:
    event = dp_accounting.GaussianDpEvent(noise)
  accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=neighbors)
  accountant.compose(event, num_rounds)
  return float(accountant.get_epsilon(delta)), delta


def _dp_states(state: Any) -> Iterator[Any]:
  """The states of TFF's differentially private factories, however deep."""
  if hasattr(state, 'dp_event'):
    yield state
  elif isinstance(state, dict):
    for value in state.values():
      yield from _dp_states(value)
  elif isinstance(state, list | tuple):
    for value in state:
      yield from _dp_states(value)


def _precision(event: dp_accounting.DpEvent) -> float:
  """Σ 1/z² of an event: several Gaussians at once are one with this sum."""
  if isinstance(event, dp_accounting.GaussianDpEvent):
    noise = float(event.noise_multiplier)
    return noise**-2 if noise > 0 else float('inf')
  if isinstance(event, dp_accounting.ComposedDpEvent):
    return sum(_precision(part) for part in event.events)
  raise ValueError(
    'Only Gaussian noise that is new in each round can be accounted for, such'
    f' as that of dp_aggregator, got {type(event).__name__}.'
  )
