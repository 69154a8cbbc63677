"""What `tasks.train` says of its runs at their end."""

from collections.abc import Mapping
from collections.abc import Sequence
import shlex
import statistics

from tasks import catalog
from tasks.reports import savings
from tasks.runs import methods
from tasks.runs import settings as settings_lib

_LAST_TESTS = 5


def summary(
  settings: settings_lib.Settings, rows: Sequence[Mapping[str, float]]
) -> str:
  """The last and the best test, the cost, and whether the accuracy fell.

  `rows` are the metrics of every round.
  """
  curve = savings.curve(settings, rows)
  last, best = (
    f'{curve.tests[i]:.4f} after round {curve.rounds[i]:.0f}'
    for i in (-1, curve.tests.argmax())
  )
  num_bytes = sum(
    rows[-1].get(f'{name}/bytes', 0) for name in ('distributor', 'aggregator')
  )
  lines = [
    f'personalized accuracy {last} (the worst tenth of devices is at or below'
    f' {curve.low[-1]:.3f}); best {best}',
    f'transmitted {curve.models[-1]:.0f} models, {num_bytes / 1e6:.1f} MB',
  ]
  # The initial model is none of training.
  loss, round_num = savings.curve(settings, rows[1:]).largest_loss()
  if loss > savings.MAX_LOSS:
    lines.append(
      f'Warning: in round {round_num} the accuracy was {100 * loss:.1f} points'
      ' below its own best before; the settings are not stable.'
    )
  return '\n'.join(lines)


def verdict(
  settings: settings_lib.Settings,
  curves: Sequence[savings.Curve],
  alone: float,
) -> str:
  """A run against the uncorrected one and training alone, and what to try.

  `curves` are those of both runs.
  """
  names = [methods.title(curve.method) for curve in curves]
  own, other = (statistics.mean(c.tests[-_LAST_TESTS:]) for c in curves)
  first = (
    f'Mean of the last {_LAST_TESTS} tests: {names[0]} {own:.3f},'
    f' {names[1]} {other:.3f} ({own - other:+.3f}); each device alone'
    f' {alone:.3f}.'
  )
  for target in catalog.targets(
    settings.task, settings.partition, settings.personalization_in_tests
  )[:1]:
    needs = [savings.need(curve, target, 3) for curve in curves]
    whens = [
      f'{name} from round {need.rounds}' if need.is_reached else f'{name} never'
      for name, need in zip(names, needs, strict=True)
    ]
    first += f' At {target:g} for three tests: {", ".join(whens)}.'
  rounds = int(curves[0].rounds[-1])
  uncorrected = settings.uncorrected()
  flags = {
    'seeds': '0,1,2,3,4',
    'task': settings.task,
    'partition': settings.partition,
    'personalizations': settings.personalization_in_tests,
    # What is a default of the corrected method may be none of the other.
    **uncorrected.changes(),
    **settings.changes(),
    'data_dir': settings.data_dir,
    'rounds': None if rounds == settings.defaults()['rounds'] else rounds,
    'methods': ','.join(filter(None, (uncorrected.method, settings.method))),
    'correction': None if settings.method else settings.correction,
  }
  given = [f'--{k}={value}' for k, value in flags.items() if value is not None]
  return (
    f'{first}\nOne seed decides nothing. For five: python -m tasks.compare'
    f' {shlex.join(given)}'
  )
