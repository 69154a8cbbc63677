"""The tables of a comparison of methods, and the words that explain them."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import statistics
from typing import Any

import numpy as np

from tasks.reports import savings
from tasks.reports import tables
from tasks.runs import names


@dataclasses.dataclass(frozen=True)
class Origin:
  """The origin of the figures: how they are computed, of which code, when.

  An accuracy is the mean of `smoothing` tests, and `num_tests` tests at a
  target count as reaching it. `given` are the settings other than the task's
  defaults, for all methods or for some.
  """

  smoothing: int
  num_tests: int
  given: str
  version: str
  date: str


@dataclasses.dataclass(frozen=True)
class Local:
  """The accuracy of each seed after local steps from the initial model."""

  num_steps: int
  step_size: float
  accuracy: Sequence[float]


def to_markdown(
  curves: Sequence[savings.Curve],
  targets: Mapping[str, Sequence[float]],
  origin: Origin,
  local: Local | None = None,
) -> str:
  """The tables of a comparison in Markdown, one for each personalization.

  `targets` are accuracies by personalization.
  """
  parts = []
  for personalization in dict.fromkeys(c.personalization for c in curves):
    group = [c for c in curves if c.personalization == personalization]
    uncorrected = savings.uncorrected_of(group)
    rows = []
    for method in dict.fromkeys(c.method for c in group):
      runs = [c for c in group if c.method == method]
      pairs = [(c, uncorrected.get((personalization, c.seed))) for c in runs]
      row = {
        names.name(personalization): names.name(method) + _mark(runs),
        'seeds': str(len(runs)),
        'final accuracy': _mean_and_deviation([c.accuracy[-1] for c in runs]),
        'gap': _gap(pairs),
      }
      for target in targets[personalization]:
        row |= _target_cells(pairs, target, origin.num_tests)
      rows.append(row)
    parts.append(tables.to_markdown(rows))
  parts.append(
    '\n'.join(f'* {note}' for note in _notes(curves, targets, origin, local))
  )
  return '\n\n'.join(parts)


def to_rows(
  curves: Sequence[savings.Curve],
  targets: Mapping[str, Sequence[float]],
  origin: Origin,
) -> list[dict[str, Any]]:
  """A row for each run and target; without targets one for each run."""
  uncorrected = savings.uncorrected_of(curves)
  rows = []
  for curve in curves:
    other = uncorrected.get((curve.personalization, curve.seed))
    loss, loss_round = curve.largest_loss()
    row = {
      'personalization': curve.personalization,
      'method': curve.method,
      'seed': curve.seed,
      'final_round': int(curve.rounds[-1]),
      'final_accuracy': float(curve.accuracy[-1]),
      'gap': float(curve.accuracy[-1] - other.accuracy[-1]) if other else None,
      'largest_loss': loss,
      'largest_loss_round': loss_round,
    }
    for target in targets[curve.personalization] or [None]:
      rows.append(
        row
        | _target_columns(curve, other, target, origin.num_tests)
        | dataclasses.asdict(origin)
        | {f'settings/{name}': value for name, value in curve.settings.items()}
      )
  return rows


def _target_columns(
  curve: savings.Curve,
  other: savings.Curve | None,
  target: float | None,
  num_tests: int,
) -> dict[str, Any]:
  columns = ('target', 'reached', 'rounds', 'models', 'saving', 'saving_bound')
  row: dict[str, Any] = dict.fromkeys(columns)
  if target is not None:
    own = savings.need(curve, target, num_tests)
    row |= {'target': target, 'reached': own.is_reached}
    if own.is_reached:
      row |= {'rounds': own.rounds, 'models': own.models}
    if other:
      saving = savings.saving(own, savings.need(other, target, num_tests))
      row |= {'saving_bound': saving.bound}
      if saving.bound != '?':
        row |= {'saving': saving.ratio}
  return row


def _is_flagged(curve: savings.Curve) -> bool:
  return curve.largest_loss()[0] > savings.MAX_LOSS


def _mark(curves: Sequence[savings.Curve]) -> str:
  return ' †' if any(map(_is_flagged, curves)) else ''


def _mean_and_deviation(values: Sequence[float]) -> str:
  mean = f'{statistics.mean(values):.3f}'
  if len(values) < 2:
    return mean
  deviation = statistics.stdev(values)
  digits = 3 if deviation >= 0.0005 else 4
  return f'{mean} ± {deviation:.{digits}f}'


def _gap(pairs: Sequence[tuple[savings.Curve, savings.Curve | None]]) -> str:
  gaps = [
    own.accuracy[-1] - other.accuracy[-1] for own, other in pairs if other
  ]
  if not gaps or pairs[0][0].is_uncorrected:
    return ''
  mean, ends = f'{statistics.mean(gaps):+.3f}', savings.interval(gaps)
  return f'{mean} [{ends[0]:+.3f}, {ends[1]:+.3f}]' if ends else mean


def _target_cells(
  pairs: Sequence[tuple[savings.Curve, savings.Curve | None]],
  target: float,
  num_tests: int,
) -> dict[str, str]:
  """Rounds, models and saving; a seed that fails makes each a bound."""
  needs = [savings.need(own, target, num_tests) for own, _ in pairs]
  reached = sum(n.is_reached for n in needs)
  rounds, models = 'not reached', ''
  if reached:
    bound = '> ' * (reached < len(needs))
    rounds = f'{bound}{statistics.mean(n.rounds for n in needs):.0f}'
    if bound:
      rounds += f' ({reached} of {len(needs)})'
    models = f'{bound}{statistics.mean(n.models for n in needs):,.0f}'
  saved = [
    savings.saving(n, savings.need(other, target, num_tests))
    for n, (_, other) in zip(needs, pairs, strict=True)
    if other
  ]
  saving = ''
  if saved and not pairs[0][0].is_uncorrected:
    saving = _saving_cell(saved) + _mark([own for own, _ in pairs])
  return {
    f'rounds to {target:g}': rounds,
    f'models to {target:g}': models,
    f'saving to {target:g}': saving,
  }


def _saving_cell(saved: Sequence[savings.Saving]) -> str:
  mean = savings.mean_saving(saved)
  if mean.bound == '?':
    return 'open'
  if mean.bound:
    return f'{mean.bound} {mean.ratio:.2f} ×'
  ends = savings.interval([np.log(s.ratio) for s in saved])
  factor = f'{mean.ratio:.2f} ×'
  if ends:
    factor += ' [{:.2f}, {:.2f}]'.format(*np.exp(ends))
  return factor


def _notes(
  curves: Sequence[savings.Curve],
  targets: Mapping[str, Sequence[float]],
  origin: Origin,
  local: Local | None,
) -> list[str]:
  seeds = sorted({c.seed for c in curves})
  mean_of = f' over the last {origin.smoothing} tests' * (origin.smoothing > 1)
  notes = [
    f'n = {len(seeds)}: the seed{"s" * (len(seeds) > 1)}'
    f' {", ".join(map(str, seeds))}.'
  ]
  if len(seeds) > 1:
    notes[0] += (
      ' ± is the standard deviation over seeds, [ ] the 95 % bootstrap interval'
      ' of the mean.'
    )
  if 1 < len(seeds) < 4:
    notes[0] += ' With two or three seeds the interval is their whole range.'
  elif 1 < len(seeds) < 10:
    notes[0] += (
      ' With fewer than ten seeds the interval is narrower than the truth.'
    )
  notes.append(
    f'Accuracy: personalized, the mean over devices{mean_of}. Gap: the final'
    ' accuracy less that of the uncorrected method, in pairs of the same seed.'
  )
  untrained = dict.fromkeys(
    names.name(c.method) for c in curves if not c.is_tested_as_trained
  )
  if untrained:
    notes.append(
      f'{", ".join(untrained)}: trained without personalization, and tested'
      ' with it.'
    )
  if local:
    notes.append(
      'Local training alone, without communication:'
      f' {_mean_and_deviation(local.accuracy)} after {local.num_steps} steps of'
      f' size {local.step_size:g} on all training examples of a device, from'
      ' the initial model.'
    )
  if any(targets.values()):
    tests = 'a test is'
    if origin.num_tests > 1:
      tests = f'{origin.num_tests} tests in a row are'
    notes.append(
      f'A target is reached in the first round from which {tests} at or above'
      f' it. Tests are every {curves[0].rounds[0]:.0f} rounds, so that the'
      ' figures have steps. Saving: the models that the uncorrected method'
      ' transmits until then over those of the method, the geometric mean of'
      ' pairs of the same seed. A seed that does not reach the target counts'
      ' with its whole run, which makes the figure a bound (> or <). It is open'
      ' where the seeds bound it from both sides, or where in a pair neither'
      ' reaches the target.'
    )
  for curve in filter(_is_flagged, curves):
    loss, round_num = curve.largest_loss()
    notes.append(
      f'† {names.name(curve.method)}, {names.name(curve.personalization)}, seed'
      f' {curve.seed}: the test in round {round_num} is {100 * loss:.0f} points'
      ' below the best before. Its settings are not stable.'
    )
  notes.append(
    f'Settings given: {origin.given or "none"}. {origin.version},'
    f' {origin.date}.'
  )
  return notes
