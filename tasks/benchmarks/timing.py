"""Measures cases in turn, and writes their times."""

import abc
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import gc
import os
import statistics
import time

from tasks.reports import tables
from tasks.runs import errors
from tasks.runs import progress
from tff_debias import runtime


class Case(abc.ABC):
  """Work that is timed."""

  def prepare(self) -> None:  # noqa: B027 (a case may have none)
    """Does all that comes before the clock starts."""

  @abc.abstractmethod
  def run(self) -> float | None:
    """Does the work; gives the seconds, where another clock measured them."""

  def figures(self) -> Mapping[str, str]:
    """Further figures after the measurement, by their names."""
    return {}


@dataclasses.dataclass(frozen=True)
class Section:
  """Cases that are compared with each other.

  The time of each is divided by those of the `references`. `runs_on_end` runs
  of a case are timed together, for their mean.
  """

  name: str
  title: str
  cases: Mapping[str, Case]
  references: Sequence[str] = ()
  runs_on_end: int = 1


@dataclasses.dataclass(frozen=True)
class Result:
  """The measurement of a section.

  For each case there are the seconds of every repetition and further figures,
  or the reason for which it failed. The nth repetitions of all cases were
  measured one after the other.
  """

  section: Section
  seconds: Mapping[str, Sequence[float]]
  figures: Mapping[str, Mapping[str, str]]
  failed: Mapping[str, str]


class UnavailableError(Exception):
  """A case cannot be measured on this machine, with the reason."""


def measure(section: Section, repetitions: int) -> Result:
  """Measures the cases of a section in turn: 1, 2, …, 1, 2, ….

  A machine that becomes slower or faster does so for all of them then. Each
  case runs once before, unmeasured. One that fails does not stop the others.
  """
  failed = {}
  seconds = {name: [] for name in section.cases}
  with progress.progress(
    len(section.cases) * (repetitions + 1), 'run', desc=f'{section.name}: '
  ) as bar:
    for repetition in range(repetitions + 1):
      for name in list(seconds):
        bar.set_postfix_str(name)
        case = section.cases[name]
        try:
          if repetition == 0:
            case.prepare()
            _timed(case, section.runs_on_end)
          else:
            seconds[name].append(_timed(case, section.runs_on_end))
        except runtime.ComputationError as e:
          failed[name] = errors.first_line(e)
        except (UnavailableError, runtime.WorkerError) as e:
          failed[name] = str(e)
        if name in failed:
          del seconds[name]
        bar.update()
  figures = {name: section.cases[name].figures() for name in seconds}
  return Result(section, seconds, figures, failed)


def _timed(case: Case, number: int) -> float:
  """The mean seconds of a run."""
  gc.collect()
  start = time.perf_counter()
  measured = [case.run() for _ in range(number)]
  if None not in measured:
    return statistics.mean(measured)
  return (time.perf_counter() - start) / number


def ratio(result: Result, case: str, reference: str) -> float:
  """The median over the repetitions of a case's time over another's."""
  pairs = zip(result.seconds[case], result.seconds[reference], strict=True)
  return statistics.median(own / other for own, other in pairs)


def to_markdown(result: Result) -> str:
  """The table of a section."""
  references = [r for r in result.section.references if r in result.seconds]
  rows = [
    {
      '': name,
      'median s': f'{statistics.median(seconds):.3g}',
      'min … max': f'{min(seconds):.3g} … {max(seconds):.3g}',
      **{f'÷ {r}': f'{ratio(result, name, r):.2f}' for r in references},
      **result.figures[name],
    }
    for name, seconds in result.seconds.items()
  ]
  parts = [f'### {result.section.title}']
  if rows:
    parts.append(tables.to_markdown(rows))
  parts += [f'Not measured: {n}: {why}' for n, why in result.failed.items()]
  return '\n\n'.join(parts) + '\n'


def write(results: Sequence[Result], machine: str, folder: str) -> None:
  """Writes the tables, `benchmark.md`, and all repetitions, `benchmark.csv`."""
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, 'benchmark')
  with open(f'{path}.md', 'w') as file:
    file.write('\n'.join([machine, '', *map(to_markdown, results)]))
  rows = [
    {
      'section': result.section.name,
      'case': case,
      'repetition': repetition,
      'seconds': value,
    }
    for result in results
    for case, seconds in result.seconds.items()
    for repetition, value in enumerate(seconds)
  ]
  if rows:
    tables.write_csv(rows, f'{path}.csv')
