import csv

import numpy as np
import pytest

from tasks.reports import method_report
from tasks.reports import savings
from tasks.reports import tables

ORIGIN = method_report.Origin(1, 2, 'a/b:c=1', 'version 7', '2026-01-31')


def curve(method, seed, accuracy, models_per_round=20, **settings):
  rounds = np.arange(1, len(accuracy) + 1)
  return savings.Curve(
    *(method, 'maml', seed, rounds, models_per_round * rounds),
    np.array(accuracy),
    settings,
  )


# Seed 1 of per_fed_avg and both seeds of pfl_scaf do not reach 0.9.
CURVES = [
  curve('per_fed_avg', 0, [0.5, 0.6, 0.8, 0.9, 0.9]),
  curve('per_fed_avg', 1, [0.5, 0.6, 0.7, 0.8, 0.8]),
  curve('pfl_dyn', 0, [0.5, 0.8, 0.9, 0.95, 0.95]),
  curve('pfl_dyn', 1, [0.5, 0.8, 0.9, 0.93, 0.93]),
  curve('pfl_scaf', 0, [0.5, 0.7, 0.8, 0.85, 0.85], 40),
  curve('pfl_scaf', 1, [0.5, 0.7, 0.6, 0.85, 0.85], 40),
]


def table(curves, targets, origin=ORIGIN):
  """The cells by method and column, and the notes."""
  markdown = method_report.to_markdown(curves, {'maml': targets}, origin)
  lines, notes = markdown.split('\n\n')
  header, _, *rows = (
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in lines.split('\n')
  )
  return {row[0]: dict(zip(header, row, strict=True)) for row in rows}, notes


def test_a_seed_that_fails_counts():
  rows, _ = table(CURVES, [0.9])
  assert rows['Per-FedAvg']['rounds to 0.9'] == '> 4 (1 of 2)'
  assert rows['Per-FedAvg']['saving to 0.9'] == ''
  assert rows['PFLDyn']['rounds to 0.9'] == '3'
  # Seed 0: 80 / 60 models; seed 1: more than 100 / 60.
  assert rows['PFLDyn']['saving to 0.9'] == '> 1.49 ×'
  # Seed 0: less than 80 / 200; seed 1: neither reaches it.
  assert rows['PFLScaf †']['rounds to 0.9'] == 'not reached'
  assert rows['PFLScaf †']['saving to 0.9'] == 'open †'


def test_the_final_gap_stands_beside_the_saving():
  rows, _ = table(CURVES, [0.8])
  # The mean and deviation of 0.9 and 0.8, and the gaps 0.05 and 0.13.
  assert rows['Per-FedAvg']['final accuracy'] == '0.850 ± 0.071'
  assert rows['PFLDyn']['gap'] == '+0.090 [+0.050, +0.130]'
  # The geometric mean of 60 / 40 and 80 / 40, and its ends.
  assert rows['PFLDyn']['saving to 0.8'] == '1.73 × [1.50, 2.00]'


def test_without_targets_or_an_uncorrected_method_there_is_no_saving():
  rows, _ = table(CURVES, [])
  assert set(rows['PFLDyn']) == {'MAML', 'seeds', 'final accuracy', 'gap'}
  rows, _ = table([CURVES[2]], [0.8])
  assert rows['PFLDyn']['saving to 0.8'] == rows['PFLDyn']['gap'] == ''


def test_a_run_that_falls_is_flagged():
  rows, notes = table(CURVES, [0.8])
  assert 'PFLScaf †' in rows and 'PFLDyn' in rows
  assert (
    '† PFLScaf, MAML, seed 1: the test in round 3 is 10 points below' in notes
  )


def test_the_notes_say_what_the_figures_are_made_of():
  _, notes = table(CURVES, [0.8])
  for part in ('n = 2: the seeds 0, 1', 'a/b:c=1', 'version 7', '2026-01-31'):
    assert part in notes
  assert '2 tests in a row' in notes and 'over the last' not in notes
  assert 'Tests are every 1 rounds' in notes and 'their whole range' in notes
  assert 'A target is' not in table(CURVES, [])[1]
  alone = table(CURVES[:1], [0.8], ORIGIN)[1]
  assert 'n = 1: the seed 0.' in alone and '±' not in alone
  assert 'Local training' not in notes
  local = method_report.Local(7, 0.1, [0.8, 0.9])
  text = method_report.to_markdown(CURVES, {'maml': []}, ORIGIN, local)
  assert 'communication: 0.850 ± 0.071 after 7 steps of size 0.1' in text


def test_methods_tested_otherwise_than_trained_are_named_and_no_reference():
  curves = [*CURVES, curve('fed_avg', 0, [0.4, 0.7, 0.8, 0.85, 0.85])]
  rows, notes = table(curves, [0.8])
  # Against Per-FedAvg, whose seed 0 ends at 0.9 and needs 60 models.
  assert rows['FedAvg']['gap'] == '-0.050'
  assert rows['FedAvg']['saving to 0.8'] == '1.00 ×'
  assert 'FedAvg: trained without personalization' in notes
  assert rows['PFLDyn'] == table(CURVES, [0.8])[0]['PFLDyn']


def test_the_csv_has_a_row_for_each_run_and_target(tmp_path):
  path = tmp_path / 'comparison.csv'
  rows = method_report.to_rows(CURVES, {'maml': [0.8, 0.9]}, ORIGIN)
  tables.write_csv(rows, str(path))
  with open(path, newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 12
  by_run = {(r['method'], r['seed'], r['target']): r for r in rows}
  dyn = by_run['pfl_dyn', '1', '0.9']
  assert (dyn['reached'], dyn['rounds']) == ('True', '3')
  assert (dyn['saving_bound'], dyn['version']) == ('>', 'version 7')
  assert float(dyn['saving']) == pytest.approx(100 / 60)
  assert float(dyn['gap']) == pytest.approx(0.13)
  assert 'settings/alpha' not in dyn
  scaf = by_run['pfl_scaf', '1', '0.9']
  assert (scaf['reached'], scaf['rounds'], scaf['saving']) == ('False', '', '')


def test_the_csv_has_all_settings():
  curves = [
    curve('per_fed_avg', 0, [0.5], task='digits', alpha=None),
    curve('pfl_dyn', 0, [0.5], task='digits', alpha=0.3),
  ]
  rows = method_report.to_rows(curves, {'maml': []}, ORIGIN)
  assert [row['settings/alpha'] for row in rows] == [None, 0.3]
  assert {row['settings/task'] for row in rows} == {'digits'}
