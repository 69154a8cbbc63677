"""The models that a method transmits to reach an accuracy, and its saving.

A method is compared, seed by seed, with the uncorrected method that has the
same personalization. Both start from the same model, with the same devices in
each round.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import statistics
from typing import Any
from typing import NamedTuple

import numpy as np

from tasks.runs import methods
from tasks.runs import settings as settings_lib

#: A run whose accuracy falls by more than this is marked.
MAX_LOSS = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """The personalized tests of a run.

  The arrays have an element for each test: its round, the models transmitted
  until then (down and up), the mean accuracy over devices, and their 10 % and
  90 % quantiles. `settings` are the values of all settings of the run.
  """

  method: str
  personalization: str
  seed: int
  rounds: np.ndarray
  models: np.ndarray
  tests: np.ndarray
  smoothing: int = 1
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  low: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
  high: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))

  @functools.cached_property
  def accuracy(self) -> np.ndarray:
    """The mean of each test and of the `smoothing` - 1 before it, `[tests]`."""
    ends = range(1, len(self.tests) + 1)
    return np.array(
      [self.tests[max(0, end - self.smoothing) : end].mean() for end in ends]
    )

  def largest_loss(self) -> tuple[float, int]:
    """The most that a single test fell below the best so far, and the round."""
    losses = np.maximum.accumulate(self.tests) - self.tests
    worst = int(losses.argmax())
    return float(losses[worst]), int(self.rounds[worst])


def curve(
  settings: settings_lib.Settings,
  rows: Sequence[Mapping[str, float]],
  smoothing: int = 1,
) -> Curve:
  """The curve of a run, from its metrics of the rounds."""
  accuracy = 'evaluation/by_client/accuracy'
  tests = [row for row in rows if f'{accuracy}/mean' in row]

  def column(name: str) -> np.ndarray:
    return np.array([row.get(name, 0.0) for row in tests])

  return Curve(
    *settings.method_names,
    settings.seed,
    column('round'),
    column('distributor/models') + column('aggregator/models'),
    column(f'{accuracy}/mean'),
    smoothing,
    # The folder of the data is a place on this machine.
    {k: v for k, v in vars(settings).items() if k != 'data_dir'}
    | {'method': settings.method},
    column(f'{accuracy}/q10'),
    column(f'{accuracy}/q90'),
  )


def is_uncorrected(method: str, personalization: str) -> bool:
  """Whether a method is the one that others are compared with.

  It has no correction, and personalizes in training as in tests.
  """
  row = methods.METHODS.get(method)
  if row is None or row.correction != 'none':
    return False
  return row.personalizes or personalization == 'none'


class Need(NamedTuple):
  """The cost of a target accuracy, or of a whole run that does not reach it."""

  is_reached: bool
  rounds: int
  models: float


def need(curve: Curve, target: float, num_tests: int) -> Need:
  """The cost of the first of `num_tests` tests in a row at or above a target.

  So no target is reached in the last `num_tests - 1` tests.
  """
  is_above = curve.accuracy >= target
  for i in range(len(is_above) - num_tests + 1):
    if is_above[i : i + num_tests].all():
      return Need(True, int(curve.rounds[i]), float(curve.models[i]))
  return Need(False, int(curve.rounds[-1]), float(curve.models[-1]))


def saving(own: Need, uncorrected: Need) -> tuple[float, str]:
  """The models of the uncorrected method over those of a method, and a bound.

  The runs are of the same seed. The bound is `''` where the ratio is exact, `>`
  or `<` where the true one is above or below it, and `?` with the ratio NaN
  where neither method reaches the target.
  """
  bounds = {(True, True): '', (True, False): '>', (False, True): '<'}
  bound = bounds.get((own.is_reached, uncorrected.is_reached), '?')
  ratio = math.nan if bound == '?' else uncorrected.models / own.models
  return ratio, bound


def mean_saving(savings: Sequence[tuple[float, str]]) -> tuple[float, str]:
  """The geometric mean over seeds, with its bound.

  Bounds to both sides, or a pair in which neither reaches the target, leave
  the mean open, `?`.
  """
  bounds = {bound for _, bound in savings} - {''}
  mean = statistics.geometric_mean(ratio for ratio, _ in savings)
  return mean, '?' if len(bounds) > 1 else ''.join(bounds)
