"""The models that a method transmits to reach an accuracy, and its saving.

A method is compared with the uncorrected one that personalizes as it is tested,
seed by seed: both start from the same model, with the same devices each round.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import numpy as np

from tasks.runs import methods
from tasks.runs import settings as settings_lib

#: A run whose accuracy falls by more than this is marked.
MAX_LOSS = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """The personalized tests of a run, without that of the initial model.

  The arrays have an element for each test: its round, the models transmitted
  until then (down and up), and the mean accuracy over devices. `settings` are
  the values of all settings of the run.
  """

  method: str
  personalization: str
  seed: int
  rounds: np.ndarray
  models: np.ndarray
  tests: np.ndarray
  smoothing: int = 1
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def accuracy(self) -> np.ndarray:
    """The mean of each test and of the `smoothing` - 1 before it, `[tests]`."""
    starts = np.maximum(np.arange(len(self.tests)) - self.smoothing + 1, 0)
    return np.array(
      [self.tests[start : end + 1].mean() for end, start in enumerate(starts)]
    )

  def largest_loss(self) -> tuple[float, int]:
    """The most that a single test fell below the best so far, and the round."""
    losses = np.maximum.accumulate(self.tests) - self.tests
    worst = int(losses.argmax())
    return float(losses[worst]), int(self.rounds[worst])


def curve(
  settings: settings_lib.Settings,
  tests: Sequence[Mapping[str, float]],
  smoothing: int = 1,
) -> Curve:
  """The curve of a run; `tests` are from `tasks.runs.folder.evaluations`."""
  method, personalization = settings.method_names
  return Curve(
    method,
    personalization,
    settings.seed,
    rounds=np.array([test['round'] for test in tests]),
    models=np.array([test['models'] for test in tests]),
    tests=np.array([test['accuracy'] for test in tests]),
    smoothing=smoothing,
    # The folder of the data is a place on this machine.
    settings={k: v for k, v in vars(settings).items() if k != 'data_dir'},
  )


def is_uncorrected(method: str, personalization: str) -> bool:
  """Whether others are compared with it.

  It has no correction, and personalizes in training as it does in tests.
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
  """The cost of reaching a target and staying there.

  `num_tests` tests in a row must be at or above the target, of which the first
  counts. So a target is not reached in the last `num_tests - 1` tests.
  """
  is_above = curve.accuracy >= target
  starts = [
    i
    for i in range(len(is_above) - num_tests + 1)
    if is_above[i : i + num_tests].all()
  ]
  place = starts[0] if starts else -1
  return Need(
    bool(starts), int(curve.rounds[place]), float(curve.models[place])
  )


class Saving(NamedTuple):
  """By which factor fewer models suffice than without a correction.

  The ratio is the models of the uncorrected method over those of the method.
  The bound is `''` where the ratio is exact, `>` or `<` where the true one is
  above or below it, and `?` where neither method reaches the target.
  """

  ratio: float
  bound: str


def saving(own: Need, uncorrected: Need) -> Saving:
  """The saving in a pair of runs of the same seed."""
  bound = {
    (True, True): '',
    (True, False): '>',
    (False, True): '<',
    (False, False): '?',
  }[own.is_reached, uncorrected.is_reached]
  return Saving(uncorrected.models / own.models, bound)


def mean_saving(savings: Sequence[Saving]) -> Saving:
  """The geometric mean over seeds, with its bound.

  Bounds to both sides, or a pair in which neither reaches the target, leave
  the mean open.
  """
  bounds = {s.bound for s in savings} - {''}
  ratio = float(np.exp(np.mean([np.log(s.ratio) for s in savings])))
  return Saving(ratio, '?' if len(bounds) > 1 else ''.join(bounds))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
  """The 95 % bootstrap interval of a mean over seeds, the same each time."""
  if len(values) < 2:
    return None
  rng = np.random.default_rng(0)
  means = rng.choice(values, (10_000, len(values))).mean(axis=1)
  low, high = np.quantile(means, (0.025, 0.975))
  return float(low), float(high)


def uncorrected_of(curves: Sequence[Curve]) -> dict[tuple[str, int], Curve]:
  """The runs of uncorrected methods by personalization and seed."""
  return {
    (curve.personalization, curve.seed): curve
    for curve in curves
    if is_uncorrected(curve.method, curve.personalization)
  }
