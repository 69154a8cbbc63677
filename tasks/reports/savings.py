"""The models that a method transmits to reach an accuracy, and its saving.

A method is compared with the uncorrected one that personalizes as it is tested,
seed by seed: both start from the same model, with the same devices each round.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from tasks.runs import settings as settings_lib

#: A run whose accuracy falls by more than this is flagged.
MAX_LOSS = 0.05


@dataclasses.dataclass(frozen=True)
class Curve:
  """The personalized tests of a run without that of the initial model.

  The arrays have an element for each test: the round, the models transmitted
  until then, down and up, and the mean accuracy over devices. `settings` are
  the values of all settings. `unsmoothed` is the accuracy of a curve before it
  was smoothed.
  """

  method: str
  personalization: str
  seed: int
  rounds: np.ndarray
  models: np.ndarray
  accuracy: np.ndarray
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  unsmoothed: np.ndarray | None = None

  def smoothed(self, window: int) -> 'Curve':
    """The same with the mean of the last `window` tests as each accuracy."""
    ends = range(1, len(self.accuracy) + 1)
    mean = [self.accuracy[max(end - window, 0) : end].mean() for end in ends]
    return dataclasses.replace(
      self, accuracy=np.array(mean), unsmoothed=self.accuracy
    )

  @property
  def tests(self) -> np.ndarray:
    """The accuracy of each test as it was measured, `[tests]`."""
    return self.accuracy if self.unsmoothed is None else self.unsmoothed

  def to_rows(self) -> list[dict[str, Any]]:
    """A row for each test, to draw the curve; the accuracy is not smoothed."""
    return [
      {
        'personalization': self.personalization,
        'method': self.method,
        'seed': self.seed,
        'round': int(round_num),
        'models': float(models),
        'accuracy': float(accuracy),
      }
      for round_num, models, accuracy in zip(
        self.rounds, self.models, self.tests, strict=True
      )
    ]

  @property
  def is_uncorrected(self) -> bool:
    """Whether it is the one with which others are compared.

    It has no correction, and personalizes in training as it does in tests.
    """
    correction, _ = self._parts
    return self.is_tested_as_trained and correction == 'none'

  @property
  def is_tested_as_trained(self) -> bool:
    """Whether training has the personalization of the tests."""
    _, personalizes = self._parts
    return personalizes or self.personalization == 'none'

  @property
  def _parts(self) -> tuple[str | None, bool]:
    """The correction, `None` for one's own, and whether it personalizes."""
    return settings_lib.METHODS.get(self.method, (None, True))

  def largest_loss(self) -> tuple[float, int]:
    """The most that a single test fell below the best so far, and the round."""
    losses = np.maximum.accumulate(self.tests) - self.tests
    worst = int(losses.argmax())
    return float(losses[worst]), int(self.rounds[worst])


def curve(
  settings: settings_lib.Settings, tests: Sequence[Mapping[str, float]]
) -> Curve:
  """The curve of a run; `tests` are from `tasks.runs.folder.evaluations`."""
  return Curve(
    *settings.method_names,
    settings.seed,
    *(
      np.array([test[name] for test in tests])
      for name in ('round', 'models', 'accuracy')
    ),
    # The folder of the data is a place on this machine.
    {k: v for k, v in vars(settings).items() if k != 'data_dir'},
  )


@dataclasses.dataclass(frozen=True)
class Need:
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


@dataclasses.dataclass(frozen=True)
class Saving:
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


def uncorrected_of(curves: Sequence[Curve]) -> Mapping[tuple[str, int], Curve]:
  """The runs of uncorrected methods by personalization and seed."""
  return {
    (curve.personalization, curve.seed): curve
    for curve in curves
    if curve.is_uncorrected
  }
