"""The summary of a run for the terminal."""

from collections.abc import Mapping
from collections.abc import Sequence

from tasks.reports import savings
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib


def summary(
  settings: settings_lib.Settings, rows: Sequence[Mapping[str, float]]
) -> str:
  """The last and the best test, the cost, and whether the accuracy fell.

  `rows` are the metrics of every round.
  """
  tests = folder_lib.evaluations(rows)
  last, best = tests[-1], max(tests, key=lambda test: test['accuracy'])
  num_bytes = sum(
    rows[-1].get(f'{name}/bytes', 0) for name in ('distributor', 'aggregator')
  )
  lines = [
    f'personalized accuracy {last["accuracy"]:.4f} after round'
    f' {last["round"]:.0f} (the worst tenth of devices is at'
    f' or below {last["low"]:.3f}); best {best["accuracy"]:.4f} after round'
    f' {best["round"]:.0f}',
    f'transmitted {last["models"]:.0f} models, {num_bytes / 1e6:.1f} MB',
  ]
  curve = savings.curve(settings, [test for test in tests if test['round'] > 0])
  loss, round_num = curve.largest_loss()
  if loss > savings.MAX_LOSS:
    lines.append(
      f'Warning: in round {round_num} the accuracy was {100 * loss:.1f} points'
      ' below its own best before; the settings are not stable.'
    )
  return '\n'.join(lines)
