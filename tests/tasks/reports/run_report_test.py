import pytest

from tasks.reports import run_report
from tasks.runs import settings as settings_lib


def make_rows(accuracies):
  """Metrics of as many rounds, of which the odd ones have no test."""
  rows = []
  for round_num, accuracy in enumerate(accuracies):
    statistics = {'mean': accuracy, 'q10': accuracy - 0.1, 'q90': 1.0}
    rows += [
      {
        'round': 2.0 * round_num,
        'distributor/models': 10.0,
        'distributor/bytes': 3e6,
        **{
          f'evaluation/by_client/accuracy/{name}': value
          for name, value in statistics.items()
        },
      },
      {'round': 2.0 * round_num + 1},
    ]
  return rows[:-1]


def test_says_the_last_and_the_best_test_and_the_cost():
  said = run_report.summary(
    settings_lib.resolve(), make_rows([0.3, 0.5, 0.92, 0.9])
  )
  assert said == (
    'personalized accuracy 0.9000 after round 6 (the worst tenth of devices is'
    ' at or below 0.800); best 0.9200 after round 4\n'
    'transmitted 10 models, 3.0 MB'
  )


@pytest.mark.parametrize(
  ('accuracies', 'expected'),
  [
    ([0.3, 0.5, 0.9, 0.86, 0.91], None),
    ([0.3, 0.5, 0.9, 0.7, 0.95, 0.8], (6, '20.0')),
    # The accuracy of the initial model is not one of training.
    ([0.9, 0.5, 0.9], None),
  ],
)
def test_warns_where_the_accuracy_fell_by_more_than_five_points(
  accuracies, expected
):
  said = run_report.summary(settings_lib.resolve(), make_rows(accuracies))
  if expected is None:
    assert 'Warning' not in said
  else:
    assert said.endswith(
      'Warning: in round {} the accuracy was {} points below its own best'
      ' before; the settings are not stable.'.format(*expected)
    )
