import csv
import math

import numpy as np
import pytest

from tasks.reports import savings as comparison


def curve(method, seed, accuracy, models_per_round=20, personalization='maml'):
  rounds = np.arange(1, len(accuracy) + 1)
  return comparison.Curve(
    method,
    personalization,
    seed,
    rounds,
    models_per_round * rounds,
    np.array(accuracy),
  )


# Two seeds; the second one of per_fed_avg does not reach 0.9.
CURVES = [
  curve('per_fed_avg', 0, [0.5, 0.6, 0.8, 0.9]),
  curve('per_fed_avg', 1, [0.5, 0.6, 0.7, 0.8]),
  curve('pfl_dyn', 0, [0.5, 0.8, 0.9, 0.95]),
  curve('pfl_dyn', 1, [0.5, 0.8, 0.9, 0.93]),
  curve('pfl_scaf', 0, [0.5, 0.7, 0.8, 0.85], 40),
  curve('pfl_scaf', 1, [0.5, 0.7, 0.75, 0.85], 40),
]


def costs(target):
  return {
    (cost.curve.method, cost.curve.seed): cost
    for cost in comparison.costs(CURVES, [target])
  }


def test_a_target_is_reached_at_the_first_test_with_it():
  found = costs(0.8)
  assert [cost.rounds for cost in found.values()] == [3, 4, 2, 2, 3, 4]
  assert found['pfl_scaf', 0].models == 120


def test_the_saving_is_a_ratio_of_models_of_the_same_seed():
  found = costs(0.8)
  assert [cost.saving for cost in found.values()] == [
    *(1, 1, 60 / 40, 80 / 40, 60 / 120, 80 / 160)
  ]


def test_what_is_not_reached_has_no_saving_or_only_a_bound():
  found = costs(0.9)
  assert found['per_fed_avg', 1].models is None
  assert found['pfl_dyn', 0].saving == 80 / 60
  assert found['pfl_dyn', 1].saving == math.inf
  assert found['pfl_dyn', 1].at_least == 80 / 60
  assert found['pfl_scaf', 0].saving is None


def test_without_the_uncorrected_method_there_is_no_saving():
  (cost,) = comparison.costs([CURVES[2]], [0.8])
  assert (cost.rounds, cost.saving, cost.at_least) == (2, None, None)


def test_smoothing_is_the_mean_of_the_last_tests():
  smoothed = CURVES[0].smoothed(3)
  expected = [0.5, 1.1 / 2, 1.9 / 3, 2.3 / 3]
  np.testing.assert_allclose(smoothed.accuracy, expected)
  np.testing.assert_array_equal(
    CURVES[0].smoothed(1).accuracy, [0.5, 0.6, 0.8, 0.9]
  )


def test_targets_are_what_the_methods_reach():
  # All runs reach 0.80, all seeds of pfl_dyn 0.93.
  assert comparison.choose_targets(CURVES) == [0.75, 0.80, 0.93]
  assert comparison.choose_targets([curve('pfl_dyn', 0, [0.001])]) == [0.01]


def test_the_table_says_what_is_not_reached():
  table = comparison.to_markdown(CURVES, {'maml': [0.8, 0.9, 0.995]})
  header, rule, uncorrected, dyn, scaf = table.split('\n')
  assert header.count('|') == rule.count('|') == dyn.count('|')
  assert all(f'to {t}:' in header for t in (0.8, 0.9, 0.995))
  # The mean and deviation of 0.9 and 0.8.
  assert '0.850 ± 0.071' in uncorrected
  assert '4 (1 of 2 seeds)' in uncorrected
  assert '1.75 (1.50–2.00) ×' in dyn
  assert '> 1.33 (1.33–1.33) ×' in dyn
  assert 'not reached' in scaf


def test_the_csv_has_a_row_for_each_run_and_target(tmp_path):
  path = tmp_path / 'comparison.csv'
  comparison.write_csv(CURVES, {'maml': [0.8, 0.9]}, str(path))
  with open(path, newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 12
  by_run = {(r['method'], r['seed'], r['target']): r for r in rows}
  dyn = by_run['pfl_dyn', '1', '0.9']
  assert (dyn['reached'], dyn['rounds'], dyn['saving']) == ('True', '3', '')
  assert float(dyn['saving_at_least']) == pytest.approx(80 / 60)
  assert by_run['pfl_scaf', '1', '0.9']['reached'] == 'False'
