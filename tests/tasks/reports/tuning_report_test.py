import numpy as np

from tasks.reports import savings
from tasks.reports import tuning_report


def curve(method, seed, accuracy, alpha=None):
  return savings.Curve(
    *(method, 'maml', seed, np.ones(2), np.ones(2)),
    np.array([0.0, accuracy]),
    settings={'alpha': alpha},
  )


ROWS = tuning_report.to_rows(
  [
    *(curve('per_fed_avg', 3, 0.5), curve('per_fed_avg', 4, 0.7)),
    *(curve('pfl_dyn', 3, 0.5, 0.01), curve('pfl_dyn', 4, 0.9, 0.01)),
    *(curve('pfl_dyn', 3, 0.8, 0.1), curve('pfl_dyn', 4, 0.8, 0.1)),
    *(curve('pfl_dyn', 3, 0.8, 1.0), curve('pfl_dyn', 4, 0.8, 1.0)),
  ],
  ['alpha'],
)


def test_the_best_mean_over_seeds_is_chosen_of_equals_the_first():
  assert [row['chosen'] for row in ROWS] == [True, False, True, False]
  assert [row['alpha'] for row in ROWS] == [None, 0.01, 0.1, 1.0]
  assert [row['method'] for row in ROWS[1:]] == ['pfl_dyn/maml'] * 3


def test_a_choice_at_the_edge_of_the_grid_is_said():
  assert not list(tuning_report.edges(ROWS, {'alpha': [0.01, 0.1, 1.0]}))
  (said,) = tuning_report.edges(ROWS, {'alpha': [0.1, 1.0]})
  assert said.startswith('pfl_dyn/maml: alpha=0.1 is at the edge of the grid')


def test_the_table_has_each_value_its_accuracy_and_the_choice():
  lines = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in tuning_report.to_markdown(ROWS, ['alpha']).split('\n')
  ]
  assert lines[2] == ['Per-FedAvg, MAML', '', '0.6000 ± 0.1414', '←']
  assert lines[3] == ['PFLDyn, MAML', '0.01', '0.7000 ± 0.2828', '']
  assert lines[4] == ['PFLDyn, MAML', '0.1', '0.8000 ± 0.0000', '←']
