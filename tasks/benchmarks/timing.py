"""Measures cases in turn, and writes what was measured."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import dataclasses
import gc
import os
import statistics
import time

import grpc
import tqdm

from tff_debias import runtime

#: Makes a case ready and gives what is timed; or a function that gives the
#: seconds itself, where the clock is elsewhere.
Prepare = Callable[[], Callable[[], float | None]]


@dataclasses.dataclass(frozen=True)
class Section:
  """Cases that are compared with each other.

  Attributes:
    name: Its name on the command line.
    title: What is measured.
    cases: The cases by name.
    references: The cases that the others are put in relation to.
    figures: Further figures of a case, by the name of the case, asked for after
      the measurement.
  """

  name: str
  title: str
  cases: Mapping[str, Prepare]
  references: Sequence[str] = ()
  figures: Callable[[str], Mapping[str, str]] = lambda case: {}


@dataclasses.dataclass(frozen=True)
class Result:
  """The measurement of a section.

  Attributes:
    section: The section.
    seconds: For each case the seconds of every repetition; the nth of all cases
      were measured one after the other.
    figures: The further figures of each case.
    failed: Why a case could not be measured.
  """

  section: Section
  seconds: Mapping[str, Sequence[float]]
  figures: Mapping[str, Mapping[str, str]]
  failed: Mapping[str, str]


class UnavailableError(Exception):
  """A case cannot be measured on this machine, and why."""


def measure(section: Section, repetitions: int) -> Result:
  """Measures the cases of a section in turn: 1, 2, …, 1, 2, ….

  So a machine that becomes slower or faster does so for all. Each case runs
  once before, unmeasured. One that fails does not stop the others.

  Args:
    section: The section.
    repetitions: How often each case is measured.

  Returns:
    The `Result`.
  """
  ready, failed = {}, {}
  with tqdm.tqdm(
    total=len(section.cases) * (repetitions + 1),
    desc=section.name,
    dynamic_ncols=True,
  ) as bar:

    def timed(name: str, run: Callable[[], float | None]) -> float:
      bar.set_postfix_str(name)
      gc.collect()
      start = time.perf_counter()
      seconds = run()
      bar.update()
      return time.perf_counter() - start if seconds is None else seconds

    for name, prepare in section.cases.items():
      with _noted(name, failed):
        ready[name] = prepare()
        timed(name, ready[name])
    seconds = {name: [] for name in ready if name not in failed}
    for _ in range(repetitions):
      for name in list(seconds):
        with _noted(name, failed):
          seconds[name].append(timed(name, ready[name]))
        if name in failed:
          del seconds[name]
  figures = {name: section.figures(name) for name in seconds}
  return Result(section, seconds, figures, failed)


@contextlib.contextmanager
def _noted(name: str, failed: dict[str, str]) -> Iterator[None]:
  """Notes why a case fails."""
  try:
    yield
  except grpc.RpcError as e:
    failed[name] = e.details().split('\n')[0]
  except (UnavailableError, runtime.WorkerError) as e:
    failed[name] = str(e)


def ratio(result: Result, case: str, reference: str) -> float:
  """The median over the repetitions of a case's time over another's."""
  pairs = zip(result.seconds[case], result.seconds[reference], strict=True)
  return statistics.median(own / other for own, other in pairs)


def to_markdown(result: Result) -> str:
  """The table of a section."""
  references = [r for r in result.section.references if r in result.seconds]
  further = list(next(iter(result.figures.values()), {}))
  header = ['', 'median s', 'min … max', *(f'÷ {r}' for r in references)]
  rows = [[*header, *further], ['---'] * (len(header) + len(further))]
  for name, seconds in result.seconds.items():
    row = [name, f'{statistics.median(seconds):.3g}']
    row += [f'{min(seconds):.3g} … {max(seconds):.3g}']
    row += [f'{ratio(result, name, r):.2f}' for r in references]
    rows.append([*row, *result.figures[name].values()])
  lines = [f'| {" | ".join(row)} |' for row in rows]
  lines += [f'\nNot measured: {n}: {why}' for n, why in result.failed.items()]
  return '\n'.join([f'### {result.section.title}', '', *lines, ''])


def write(results: Sequence[Result], machine: str, folder: str) -> None:
  """Writes `benchmark.md`, the tables, and `benchmark.csv`, every repetition.

  Args:
    results: The sections.
    machine: Where they were measured.
    folder: The folder; it is made.
  """
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, 'benchmark')
  with open(f'{path}.md', 'w') as file:
    file.write('\n'.join([machine, '', *map(to_markdown, results)]))
  with open(f'{path}.csv', 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['section', 'case', 'repetition', 'seconds'])
    for result in results:
      for case, seconds in result.seconds.items():
        for i, value in enumerate(seconds):
          writer.writerow([result.section.name, case, i, value])
