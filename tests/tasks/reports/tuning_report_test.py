from tasks.reports import tuning_report

_ACCURACY = {
  ('per_fed_avg/maml', ()): [0.5, 0.7],
  ('pfl_dyn/maml', (('alpha', 0.01),)): [0.5, 0.9],
  ('pfl_dyn/maml', (('alpha', 0.1),)): [0.8, 0.8],
  ('pfl_dyn/maml', (('alpha', 1.0),)): [0.8, 0.8],
}


def test_the_best_mean_over_seeds_is_chosen_of_equals_the_first():
  rows = tuning_report.to_rows(_ACCURACY, ['alpha'])
  assert [row['chosen'] for row in rows] == [True, False, True, False]
  assert [row['alpha'] for row in rows] == [None, 0.01, 0.1, 1.0]


def test_the_table_has_each_value_its_accuracy_and_the_choice():
  text = tuning_report.to_markdown(_ACCURACY, ['alpha'], ['seeds: 3 4'])
  lines = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.split('\n\n')[0].split('\n')
  ]
  assert lines[2] == ['Per-FedAvg, MAML', '', '0.6000 ± 0.1414', '←']
  assert lines[3] == ['PFLDyn, MAML', '0.01', '0.7000 ± 0.2828', '']
  assert lines[4] == ['PFLDyn, MAML', '0.1', '0.8000 ± 0.0000', '←']
  assert text.endswith('* seeds: 3 4')
