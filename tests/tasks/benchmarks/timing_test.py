import csv

import pytest

from tasks.benchmarks import timing
from tff_debias import runtime


def section(cases, **options):
  return timing.Section('name', 'A title', cases, **options)


class Case(timing.Case):
  def __init__(self, run, prepare=lambda: None):
    self.run, self.prepare = run, prepare

  def run(self):
    raise NotImplementedError


def clock(order, name, seconds):
  seconds = iter(seconds)

  def run():
    order.append(name)
    return next(seconds)

  return Case(run)


def test_cases_run_in_turn_after_one_run_each():
  order = []
  cases = {name: clock(order, name, [9.0, 1.0, 2.0]) for name in 'ab'}
  result = timing.measure(section(cases), 2)
  assert ''.join(order) == 'ab' + 'abab'
  assert result.seconds == {'a': [1.0, 2.0], 'b': [1.0, 2.0]}


def test_without_seconds_of_its_own_a_case_is_timed():
  result = timing.measure(section({'a': Case(lambda: None)}), 3)
  assert all(0 <= seconds < 1 for seconds in result.seconds['a'])


def test_runs_on_end_are_timed_together_for_their_mean():
  order = []
  case = clock(order, 'a', [9.0, 9.0, 1.0, 3.0])
  result = timing.measure(section({'a': case}, runs_on_end=2), 1)
  assert result.seconds == {'a': [2.0]}


def test_what_is_not_available_is_reported():
  def missing():
    raise timing.UnavailableError('no such program')

  result = timing.measure(
    section(
      {
        'a': Case(lambda: 1.0),
        'b': Case(lambda: 1.0, missing),
      },
      references=('b',),
    ),
    1,
  )
  assert list(result.seconds) == ['a']
  assert 'Not measured: b: no such program' in timing.to_markdown(result)


def test_what_fails_later_loses_nothing_else():
  seconds = iter([1.0, 2.0])

  def fails_in_the_second_repetition():
    try:
      return next(seconds)
    except StopIteration:
      raise runtime.WorkerError('killed') from None

  result = timing.measure(
    section(
      {
        'a': Case(fails_in_the_second_repetition),
        'b': Case(lambda: 3.0),
      }
    ),
    2,
  )
  assert result.seconds == {'b': [3.0, 3.0]}
  assert result.failed == {'a': 'killed'}


RESULT = timing.Result(
  section({}, references=('b',)),
  {'a': [1.0, 4.0, 3.0], 'b': [2.0, 2.0, 1.0]},
  {'a': {'MB': '7'}, 'b': {'MB': '8'}},
  {},
)


def test_a_ratio_is_of_the_same_repetition():
  # The median of 1/2, 4/2 and 3/1; that of the medians would be 1.5.
  assert timing.ratio(RESULT, 'a', 'b') == 2.0


def test_the_table_and_the_file_have_all(tmp_path):
  row = timing.to_markdown(RESULT).split('\n')[4]
  cells = [cell.strip() for cell in row.strip('|').split('|')]
  assert cells == ['a', '3', '1 … 4', '2.00', '7']
  timing.write([RESULT], 'A machine.', str(tmp_path / 'new'))
  assert (
    (tmp_path / 'new' / 'benchmark.md').read_text().startswith('A machine.')
  )
  with open(tmp_path / 'new' / 'benchmark.csv', newline='') as file:
    rows = [(r['case'], float(r['seconds'])) for r in csv.DictReader(file)]
  assert rows == [
    *(('a', 1.0), ('a', 4.0), ('a', 3.0), ('b', 2.0), ('b', 2.0), ('b', 1.0))
  ]
  assert timing.ratio(RESULT, 'b', 'b') == pytest.approx(1.0)
