"""The tables of a comparison of methods, and the words that explain them."""

from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import Any

from tasks.reports import savings
from tasks.reports import tables
from tasks.runs import methods

_OF_TARGET = ('reached', 'rounds', 'models', 'saving', 'saving_bound')
_PLAIN = [row.title for row in methods.METHODS.values() if not row.personalizes]
#: What explains the tables.
NOTES = (
  'Accuracy: personalized, the mean over devices. ±: the standard deviation'
  ' over seeds. Gap: the final accuracy less that of the uncorrected method,'
  ' for the same seed. [ ]: the range over seeds.',
  f'{", ".join(_PLAIN)} train without personalization, and are tested with it.',
  'Rounds to a target: the first of enough tests in a row at or above it.'
  ' Saving: the models that the uncorrected method transmits until then over'
  ' those of the method, the geometric mean over seeds. A seed that does not'
  ' reach the target counts with its whole run, so the figure is a bound (> or'
  ' <), or open where the seeds do not bound it from one side.',
  f'† A test is more than {100 * savings.MAX_LOSS:.0f} points below the best'
  ' before it: the settings are not stable.',
)


def to_rows(
  curves: Sequence[savings.Curve],
  targets: Mapping[str, Sequence[float]],
  num_tests: int,
) -> list[dict[str, Any]]:
  """A row for each run and target; without targets one for each run.

  Args:
    curves: The curves of all runs.
    targets: Accuracies by personalization.
    num_tests: The number of tests in a row that reach a target.
  """
  references = {
    (curve.personalization, curve.seed): curve
    for curve in curves
    if savings.is_uncorrected(curve.method, curve.personalization)
  }
  rows = []
  for curve in curves:
    other = references.get((curve.personalization, curve.seed))
    loss, loss_round = curve.largest_loss()
    chosen: list[Any] = [*targets[curve.personalization]] or [None]
    for target in chosen:
      row: dict[str, Any] = {
        'personalization': curve.personalization,
        'method': curve.method,
        'seed': curve.seed,
        'final_round': int(curve.rounds[-1]),
        'final_models': float(curve.models[-1]),
        'final_accuracy': float(curve.accuracy[-1]),
        'gap': curve.accuracy[-1] - other.accuracy[-1] if other else None,
        'largest_loss': loss,
        'largest_loss_round': loss_round,
        'num_tests': num_tests,
        'target': target,
        **dict.fromkeys(_OF_TARGET),
      }
      if target is not None:
        own = savings.need(curve, target, num_tests)
        row['reached'] = own.is_reached
        if own.is_reached:
          row |= {'rounds': own.rounds, 'models': own.models}
        if other:
          needed = savings.need(other, target, num_tests)
          row['saving'], row['saving_bound'] = savings.saving(own, needed)
      settings = {f'settings/{k}': v for k, v in curve.settings.items()}
      rows.append(row | settings)
  return rows


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Tables of `to_rows`, one for each personalization."""
  parts = []
  for personalization, group in _groups(rows, 'personalization').items():
    lines = []
    for method, of_method in _groups(group, 'method').items():
      by_target = _groups(of_method, 'target')
      runs = next(iter(by_target.values()))
      has_fallen = max(r['largest_loss'] for r in runs) > savings.MAX_LOSS
      mark = ' †' if has_fallen else ''
      is_compared = not savings.is_uncorrected(method, personalization)
      final = [r['final_accuracy'] for r in runs]
      line = {
        methods.title(personalization): methods.title(method) + mark,
        'seeds': str(len(runs)),
        'final accuracy': tables.mean_and_deviation(final, 3),
        'gap': _gap(runs) if is_compared else '',
      }
      for target, runs in by_target.items():
        if target is not None:
          cells = (*_cost(runs), _saving(runs) if is_compared else '')
          names = ('rounds', 'models', 'saving')
          for name, cell in zip(names, cells, strict=True):
            line[f'{name} to {target:g}'] = cell
      lines.append(line)
    parts.append(tables.to_markdown(lines))
  return '\n\n'.join(parts)


def _groups(
  rows: Sequence[Mapping[str, Any]], column: str
) -> dict[Any, list[Mapping[str, Any]]]:
  """The rows by their value in a column, in the order of the rows."""
  values = dict.fromkeys(row[column] for row in rows)
  return {v: [row for row in rows if row[column] == v] for v in values}


def _gap(runs: Sequence[Mapping[str, Any]]) -> str:
  gaps = [run['gap'] for run in runs if run['gap'] is not None]
  return _with_range(statistics.mean(gaps), gaps, '+.3f') if gaps else ''


def _with_range(
  mean: float, values: Sequence[float], form: str, unit: str = ''
) -> str:
  text = f'{mean:{form}}{unit}'
  if len(values) < 2:
    return text
  return f'{text} [{min(values):{form}}, {max(values):{form}}]'


def _cost(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
  """The rounds and models to a target; a seed that fails makes them bounds."""
  reached = sum(run['reached'] for run in runs)
  if not reached:
    return 'not reached', ''
  rounds, models = (
    statistics.mean(run[name if run['reached'] else all_of] for run in runs)
    for name, all_of in (('rounds', 'final_round'), ('models', 'final_models'))
  )
  if reached == len(runs):
    return f'{rounds:.0f}', f'{models:,.0f}'
  return f'> {rounds:.0f} ({reached} of {len(runs)})', f'> {models:,.0f}'


def _saving(runs: Sequence[Mapping[str, Any]]) -> str:
  """The mean saving, with its range or as a bound."""
  pairs = [(run['saving'], run['saving_bound']) for run in runs]
  saved = [pair for pair in pairs if pair[1] is not None]
  if not saved:
    return ''
  mean, bound = savings.mean_saving(saved)
  if bound == '?':
    return 'open'
  if bound:
    return f'{bound} {mean:.2f} ×'
  return _with_range(mean, [ratio for ratio, _ in saved], '.2f', ' ×')


def curve_rows(curves: Sequence[savings.Curve]) -> list[dict[str, Any]]:
  """A row for each test, to draw the curves; accuracies are not smoothed."""
  return [
    {
      'personalization': curve.personalization,
      'method': curve.method,
      'seed': curve.seed,
      'round': int(curve.rounds[i]),
      'models': float(curve.models[i]),
      'accuracy': float(curve.tests[i]),
    }
    for curve in curves
    for i in range(len(curve.tests))
  ]
