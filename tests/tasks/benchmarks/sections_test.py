import csv
import subprocess
import sys
import types

import pytest

from tasks import benchmark
from tasks.benchmarks import sections

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
  chosen = ('plain', 'population')
  result = subprocess.run(
    [
      *(sys.executable, '-m', 'tasks.benchmark', *flags, '--repetitions=1'),
      *(f'--section={name}' for name in chosen),
      f'--output_dir={tmp_path}',
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
    for name in chosen
    for case in sections.SECTIONS[name](SIZE).cases
    # It counts epochs, of which one step is none.
    if 'pfl' not in case
  ]
  assert all(float(row['seconds']) > 0 for row in rows)
