import csv

import numpy as np
import pytest

from tasks.reports import method_report
from tasks.reports import savings
from tasks.reports import tables


def curve(method, seed, accuracy, models_per_round=20, **settings):
  rounds = np.arange(1, len(accuracy) + 1)
  return savings.Curve(
    *(method, 'maml', seed, rounds, models_per_round * rounds),
    np.array(accuracy),
    settings=settings,
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


def table(curves, targets):
  """The cells by method and column."""
  rows = method_report.to_rows(curves, {'maml': targets}, 2)
  lines = method_report.to_markdown(rows)
  header, _, *rows = (
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in lines.split('\n')
  )
  return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_a_seed_that_fails_counts():
  rows = table(CURVES, [0.9])
  # The mean of 80 models, and of 100 without success.
  assert rows['Per-FedAvg']['rounds to 0.9'] == '> 4 (1 of 2)'
  assert rows['Per-FedAvg']['models to 0.9'] == '> 90'
  assert rows['Per-FedAvg']['saving to 0.9'] == ''
  assert rows['PFLDyn']['rounds to 0.9'] == '3'
  # Seed 0: 80 / 60 models; seed 1: more than 100 / 60.
  assert rows['PFLDyn']['saving to 0.9'] == '> 1.49 ×'
  # Seed 0: less than 80 / 200; seed 1: neither reaches it.
  assert rows['PFLScaf †']['rounds to 0.9'] == 'not reached'
  assert rows['PFLScaf †']['saving to 0.9'] == 'open'


def test_the_final_gap_stands_beside_the_saving():
  rows = table(CURVES, [0.8])
  # The mean and deviation of 0.9 and 0.8, and the gaps 0.05 and 0.13.
  assert rows['Per-FedAvg']['final accuracy'] == '0.850 ± 0.071'
  assert rows['PFLDyn']['gap'] == '+0.090 [+0.050, +0.130]'
  # The geometric mean of 60 / 40 and 80 / 40, and its ends.
  assert rows['PFLDyn']['saving to 0.8'] == '1.73 × [1.50, 2.00]'
  # A run that falls is marked.
  assert 'PFLScaf †' in rows


def test_without_targets_or_an_uncorrected_method_there_is_no_saving():
  rows = table(CURVES, [])
  assert set(rows['PFLDyn']) == {'MAML', 'seeds', 'final accuracy', 'gap'}
  rows = table([CURVES[2]], [0.8])
  assert rows['PFLDyn']['saving to 0.8'] == rows['PFLDyn']['gap'] == ''


def test_methods_tested_otherwise_than_trained_are_no_reference():
  curves = [*CURVES, curve('fed_avg', 0, [0.4, 0.7, 0.8, 0.85, 0.85])]
  rows = table(curves, [0.8])
  # Against Per-FedAvg, whose seed 0 ends at 0.9 and needs 60 models.
  assert rows['FedAvg']['gap'] == '-0.050'
  assert rows['FedAvg']['saving to 0.8'] == '1.00 ×'
  assert rows['PFLDyn'] == table(CURVES, [0.8])['PFLDyn']


def test_the_csv_has_a_row_for_each_run_and_target(tmp_path):
  path = tmp_path / 'comparison.csv'
  rows = method_report.to_rows(CURVES, {'maml': [0.8, 0.9]}, 2)
  tables.write_csv(rows, str(path))
  with open(path, newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 12
  by_run = {(r['method'], r['seed'], r['target']): r for r in rows}
  dyn = by_run['pfl_dyn', '1', '0.9']
  assert (dyn['reached'], dyn['rounds']) == ('True', '3')
  assert (dyn['saving_bound'], dyn['num_tests']) == ('>', '2')
  assert float(dyn['saving']) == pytest.approx(100 / 60)
  assert float(dyn['gap']) == pytest.approx(0.13)
  scaf = by_run['pfl_scaf', '1', '0.9']
  assert (scaf['reached'], scaf['rounds'], scaf['saving']) == ('False', '', '')


def test_the_csv_has_all_settings():
  curves = [
    curve('per_fed_avg', 0, [0.5], task='digits', alpha=None),
    curve('pfl_dyn', 0, [0.5], task='digits', alpha=0.3),
  ]
  rows = method_report.to_rows(curves, {'maml': []}, 2)
  assert [row['settings/alpha'] for row in rows] == [None, 0.3]
  assert {row['settings/task'] for row in rows} == {'digits'}
