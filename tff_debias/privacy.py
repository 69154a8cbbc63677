"""Aggregators that keep one client's update private, and what they spend."""

import math

import dp_accounting
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
    noise_multiplier: The standard deviation of the noise in the sum over
      `max_update_norm`; `None` for no differential privacy.
  """

  def __init__(
    self,
    factory: tff.aggregators.UnweightedAggregationFactory,
    max_update_norm: float,
    num_planned: float | None = None,
    noise_multiplier: float | None = None,
  ):
    """Wraps the factory that does the work."""
    self._factory = factory
    self.max_update_norm = max_update_norm
    self.num_planned = num_planned
    self.noise_multiplier = noise_multiplier

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
  return BoundedMeanFactory(factory, clip_norm, num_planned, noise_multiplier)


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
  aggregator: BoundedMeanFactory,
  num_rounds: int,
  *,
  num_clients: int,
  delta: float,
  sampling: str = 'fixed_size',
) -> tuple[float, float]:
  """The ε and δ of all rounds with an aggregator.

  By Rényi differential privacy of the subsampled Gaussian mechanism: the true ε
  is this or less.

  Args:
    aggregator: The `dp_aggregator` of the process. A round has p participants,
      p its `clients_per_round`; on average if `sampling` is `'poisson'`.
    num_rounds: The number of rounds.
    num_clients: m, the number of clients in the population.
    delta: δ, below 1 / m.
    sampling: How a round's clients were chosen.

      * `'fixed_size'`: exactly p clients, drawn uniformly without replacement,
        as by `tff.simulation.build_uniform_sampling_fn`. ε is that of replacing
        a client by another, which changes the sum by up to 2 C.
      * `'poisson'`: each client by a draw of its own, with the probability p /
        m. ε is that of adding or removing a client, as most papers report it.
      * `'unknown'`: in a way that an adversary may know. ε is that of adding or
        removing a client, without the gain of sampling.

  Returns:
    ε and δ. ε is 0 before the first round, and infinite without noise.

  Raises:
    ValueError: If an argument is out of range, or the aggregator adds no noise.
  """
  noise = getattr(aggregator, 'noise_multiplier', None)
  if noise is None or aggregator.num_planned is None:
    raise ValueError(
      'aggregator must be a dp_aggregator(...), as the process has, got'
      f' {type(aggregator).__name__}.'
    )
  num_participants = int(aggregator.num_planned)
  checks.check_integer('num_rounds', num_rounds, 0)
  checks.check_integer('num_clients', num_clients, num_participants)
  checks.check_number('delta', delta, positive=True)
  if delta >= 1:
    raise ValueError(f'delta must be below 1, got {delta!r}.')
  if sampling not in _SAMPLINGS:
    raise ValueError(f'sampling must be one of {_SAMPLINGS}, got {sampling!r}.')
  if not num_rounds or not noise:
    return math.inf if num_rounds else 0.0, delta
  neighbors = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  if sampling == 'fixed_size':
    neighbors = dp_accounting.NeighboringRelation.REPLACE_ONE
    # dp_accounting takes the noise over the sensitivity, which is 2 C here.
    event = dp_accounting.SampledWithoutReplacementDpEvent(
      num_clients, num_participants, dp_accounting.GaussianDpEvent(noise / 2)
    )
  elif sampling == 'poisson':
    event = dp_accounting.PoissonSampledDpEvent(
      num_participants / num_clients, dp_accounting.GaussianDpEvent(noise)
    )
  else:
    event = dp_accounting.GaussianDpEvent(noise)
  accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=neighbors)
  accountant.compose(event, num_rounds)
  return float(accountant.get_epsilon(delta)), delta
