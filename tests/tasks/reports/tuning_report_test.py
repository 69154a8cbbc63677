from tasks.reports import tuning_report

_ACCURACY = {
  ('per_fed_avg/maml', ()): [0.5, 0.7],
  ('pfl_dyn/maml', (('alpha', 0.01),)): [0.5, 0.9],
  ('pfl_dyn/maml', (('alpha', 0.1),)): [0.8, 0.8],
  ('pfl_dyn/maml', (('alpha', 1.0),)): [0.8, 0.8],
}
_GRID = {'alpha': [0.01, 0.1, 1.0]}


def test_the_best_mean_over_seeds_is_chosen_of_equals_the_first():
  assert tuning_report.best_points(_ACCURACY) == {
    'per_fed_avg/maml': (),
    'pfl_dyn/maml': (('alpha', 0.1),),
  }
  rows = tuning_report.to_rows(_ACCURACY, _GRID)
  assert [row['chosen'] for row in rows] == [True, False, True, False]
  assert [row['alpha'] for row in rows] == [None, 0.01, 0.1, 1.0]


def test_the_table_has_each_value_its_accuracy_and_the_choice():
  text = tuning_report.to_markdown(_ACCURACY, _GRID, {'seeds': '3 4'})
  lines = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.split('\n\n')[0].split('\n')
  ]
  assert lines[2] == ['Per-FedAvg, MAML', '', '0.6000 ± 0.1414', '←']
  assert lines[3] == ['PFLDyn, MAML', '0.01', '0.7000 ± 0.2828', '']
  assert lines[4] == ['PFLDyn, MAML', '0.1', '0.8000 ± 0.0000', '←']
  assert 'seeds: 3 4' in text and 'beyond' not in text


def test_a_choice_at_the_end_of_the_values_is_named():
  accuracy = _ACCURACY | {('pfl_dyn/maml', (('alpha', 1.0),)): [0.9, 0.9]}
  text = tuning_report.to_markdown(accuracy, _GRID, {})
  assert 'pfl_dyn/maml: alpha=1 is the first or last of its values' in text
