"""What a comparison of methods says, from the metrics of its runs."""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import math
import statistics

import numpy as np

#: The methods without a correction, which the others are compared with.
UNCORRECTED = ('fed_avg', 'per_fed_avg')


@dataclasses.dataclass(frozen=True)
class Curve:
  """The personalized tests of a run, but for that of the initial model.

  Attributes:
    method: The method.
    personalization: The personalization.
    seed: The seed.
    rounds: The rounds with a test, int `[tests]`.
    models: The models transmitted until then, down and up, `[tests]`.
    accuracy: The mean accuracy over devices, `[tests]`.
  """

  method: str
  personalization: str
  seed: int
  rounds: np.ndarray
  models: np.ndarray
  accuracy: np.ndarray

  def smoothed(self, window: int) -> 'Curve':
    """With the mean of the last `window` tests in place of each."""
    ends = range(1, len(self.accuracy) + 1)
    mean = [self.accuracy[max(end - window, 0) : end].mean() for end in ends]
    return dataclasses.replace(self, accuracy=np.array(mean))

  def reaches(self, target: float) -> int | None:
    """The place of the first test with the target accuracy, if there is one."""
    there = np.flatnonzero(self.accuracy >= target)
    return int(there[0]) if there.size else None


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a run needs to a target accuracy.

  Attributes:
    curve: The run.
    target: The accuracy.
    rounds: The rounds, `None` where it is not reached.
    models: The models transmitted, likewise.
    saving: By what the uncorrected method of the same personalization and seed
      needs more: the ratio of models transmitted. `inf` where only that does
      not reach the target, `None` where this does not.
    at_least: Where only the uncorrected method does not reach the target: the
      ratio to all that it transmitted.
  """

  curve: Curve
  target: float
  rounds: int | None = None
  models: float | None = None
  saving: float | None = None
  at_least: float | None = None


def choose_targets(curves: Sequence[Curve]) -> list[float]:
  """Targets from what the methods of a personalization reach.

  Args:
    curves: The runs of one personalization.

  Returns:
    In whole percent: 5 below what all runs reach, what all runs reach, and what
    all seeds of the best method reach.
  """
  reached = {}
  for curve in curves:
    best = curve.accuracy.max()
    reached[curve.method] = min(best, reached.get(curve.method, 1.0))
  percents = [math.floor(100 * r + 1e-9) for r in reached.values()]
  low, high = min(percents), max(percents)
  return sorted({max(p, 1) / 100 for p in (low - 5, low, high)})


def costs(curves: Sequence[Curve], targets: Sequence[float]) -> list[Cost]:
  """What each run needs to each target, as a `Cost`."""
  uncorrected = {
    (curve.personalization, curve.seed): curve
    for curve in curves
    if curve.method in UNCORRECTED
  }
  results = []
  for curve in curves:
    other = uncorrected.get((curve.personalization, curve.seed))
    for target in targets:
      place = curve.reaches(target)
      if place is None:
        results.append(Cost(curve, target))
        continue
      models, saving, at_least = float(curve.models[place]), None, None
      if other is not None:
        others = other.reaches(target)
        if others is None:
          saving, at_least = math.inf, float(other.models[-1]) / models
        else:
          saving = float(other.models[others]) / models
      results.append(
        Cost(curve, target, int(curve.rounds[place]), models, saving, at_least)
      )
  return results


def to_markdown(
  curves: Sequence[Curve], targets: Mapping[str, Sequence[float]]
) -> str:
  """The tables of a comparison, one for each personalization.

  Args:
    curves: The runs, smoothed or not.
    targets: The target accuracies of each personalization.

  Returns:
    Markdown.
  """
  tables = []
  for personalization, chosen in targets.items():
    group = [c for c in curves if c.personalization == personalization]
    lines = [
      f'| {personalization} | last accuracy |'
      + ''.join(f' to {t:g}: rounds | models | saving |' for t in chosen),
      '| --- ' * (2 + 3 * len(chosen)) + '|',
    ]
    for method in dict.fromkeys(c.method for c in group):
      runs = [c for c in group if c.method == method]
      cells = [method, _mean_and_deviation([c.accuracy[-1] for c in runs])]
      for target in chosen:
        needed = [
          cost for cost in costs(group, [target]) if cost.curve.method == method
        ]
        cells += _cost_cells(needed, method in UNCORRECTED)
      lines.append(f'| {" | ".join(cells)} |')
    tables.append('\n'.join(lines))
  return '\n\n'.join(tables)


def write_csv(
  curves: Sequence[Curve],
  targets: Mapping[str, Sequence[float]],
  path: str,
) -> None:
  """Writes a row for each run and target.

  Args:
    curves: The runs, smoothed or not.
    targets: The target accuracies of each personalization.
    path: The file.
  """
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(
      [
        *('personalization', 'method', 'seed', 'last_round', 'last_accuracy'),
        *('target', 'reached', 'rounds', 'models', 'saving', 'saving_at_least'),
      ]
    )
    for personalization, chosen in targets.items():
      group = [c for c in curves if c.personalization == personalization]
      for cost in costs(group, chosen):
        curve = cost.curve
        finite = cost.saving if cost.saving != math.inf else None
        writer.writerow(
          [
            *(personalization, curve.method, curve.seed, curve.rounds[-1]),
            *(curve.accuracy[-1], cost.target, cost.rounds is not None),
            *(cost.rounds, cost.models, finite, cost.at_least),
          ]
        )


def _mean_and_deviation(values: Sequence[float]) -> str:
  mean = f'{statistics.mean(values):.3f}'
  return f'{mean} ± {statistics.stdev(values):.3f}' if len(values) > 1 else mean


def _cost_cells(needed: Sequence[Cost], is_reference: bool) -> list[str]:
  """Rounds, models and saving over the seeds: the mean and the range."""
  reached = [cost for cost in needed if cost.rounds is not None]
  if not reached:
    return ['not reached', '', '']
  share = (
    ''
    if len(reached) == len(needed)
    else (f' ({len(reached)} of {len(needed)} seeds)')
  )
  cells = [
    _mean_and_range([cost.rounds for cost in reached], '.0f') + share,
    f'{statistics.mean(cost.models for cost in reached):,.0f}',
  ]
  savings = [cost.saving for cost in reached]
  if is_reference or None in savings:
    return [*cells, '']
  finite = [s for s in savings if s != math.inf]
  if len(finite) == len(savings):
    return [*cells, f'{_mean_and_range(finite, ".2f")} ×']
  bounds = [
    cost.at_least if cost.saving == math.inf else cost.saving
    for cost in reached
  ]
  return [*cells, f'> {_mean_and_range(bounds, ".2f")} ×']


def _mean_and_range(values: Sequence[float], form: str) -> str:
  mean = format(statistics.mean(values), form)
  if len(values) == 1:
    return mean
  return f'{mean} ({min(values):{form}}–{max(values):{form}})'
