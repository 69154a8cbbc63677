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
  last, best = (
    f'{tests["accuracy"][i]:.4f} after round {tests["round"][i]:.0f}'
    for i in (-1, tests['accuracy'].argmax())
  )
  num_bytes = sum(
    rows[-1].get(f'{name}/bytes', 0) for name in ('distributor', 'aggregator')
  )
  lines = [
    f'personalized accuracy {last} (the worst tenth of devices is at or below'
    f' {tests["low"][-1]:.3f}); best {best}',
    f'transmitted {tests["models"][-1]:.0f} models, {num_bytes / 1e6:.1f} MB',
  ]
  loss, round_num = savings.curve(settings, rows).largest_loss()
  if loss > savings.MAX_LOSS:
    lines.append(
      f'Warning: in round {round_num} the accuracy was {100 * loss:.1f} points'
      ' below its own best before; the settings are not stable.'
    )
  return '\n'.join(lines)
