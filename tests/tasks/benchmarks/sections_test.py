import csv
import subprocess
import sys
import types

import pytest

from tasks import benchmark
from tasks.benchmarks import sections
from tasks.benchmarks import timing

SIZE = types.SimpleNamespace(
  clients_per_round=1,
  local_steps=10,
  maml_local_steps=1,
  maml_steps=1,
  batch_size=50,
  repetitions=1,
  pfl_python='python',
)


def test_the_command_knows_all_sections():
  assert benchmark._SECTIONS == tuple(sections.SECTIONS)


@pytest.mark.parametrize('name', sections.SECTIONS)
def test_a_section_refers_to_its_own_cases(name):
  section = sections.SECTIONS[name](SIZE)
  assert section.name == name
  assert set(section.references) <= set(section.cases)
  assert any('pfl' in case for case in section.cases) == (name == 'plain')


@pytest.mark.slow
def test_the_command_measures_every_case(tmp_path):
  flags = ['--clients_per_round=1', '--local_steps=1', '--batch_size=2']
  result = subprocess.run(
    [
      *(sys.executable, '-m', 'tasks.benchmark', *flags, '--repetitions=1'),
      *('--section=plain', f'--output_dir={tmp_path}'),
    ],
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert result.returncode == 0, result.stderr
  assert 'Not measured' not in result.stdout
  with open(tmp_path / 'benchmark.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['case'] for row in rows] == [
    case
    for case in sections.plain(SIZE).cases
    # It counts epochs, of which one step is none.
    if 'pfl' not in case
  ]
  assert all(float(row['seconds']) > 0 for row in rows)


def test_rounds_of_a_population_are_measured_with_their_memory():
  case = sections.population(SIZE).cases['100 devices']
  case.number = 2
  section = timing.Section('population', '', {'100 devices': case})
  result = timing.measure(section, 1)
  assert not result.failed
  assert len(result.seconds['100 devices']) == 1
  figures = result.figures['100 devices']
  # The copies, and those of 10 participants in each of 7 rounds; a checkpoint
  # removes no copy.
  assert 100 < int(figures['states on the disk']) <= 170
  assert float(figures['worker MB']) > 50 < float(figures['program MB'])
