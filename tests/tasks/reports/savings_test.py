import numpy as np
import pytest

from tasks.reports import savings
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib


def curve(
  method,
  seed,
  accuracy,
  models_per_round=20,
  personalization='maml',
  smoothing=1,
):
  rounds = np.arange(1, len(accuracy) + 1)
  return savings.Curve(
    method,
    personalization,
    seed,
    rounds,
    models_per_round * rounds,
    np.array(accuracy),
    smoothing,
  )


@pytest.mark.parametrize(
  ('accuracy', 'num_tests', 'round_num'),
  [
    ([0.5, 0.9, 0.9, 0.9, 0.5], 3, 2),
    ([0.9, 0.5, 0.9, 0.9, 0.9], 3, 3),  # Not where it crosses first.
    ([0.5, 0.9, 0.9, 0.5, 0.9], 3, None),  # Nor where too few are left.
    ([0.5, 0.9, 0.9, 0.5, 0.8], 3, None),
    ([0.5, 0.9, 0.9, 0.5, 0.8], 1, 2),
    ([0.5, 0.7, 0.9, 0.95, 0.95], 3, 3),
    ([0.5, 0.7, 0.7, 0.95, 0.95], 3, None),
  ],
)
def test_a_target_is_reached_where_the_accuracy_stays(
  accuracy, num_tests, round_num
):
  found = savings.need(curve('pfl_dyn', 0, accuracy), 0.9, num_tests)
  assert found.is_reached == (round_num is not None)
  # A run that fails has spent all its rounds.
  assert (found.rounds, found.models) == (round_num or 5, 20 * (round_num or 5))


@pytest.mark.parametrize(
  ('own', 'other', 'expected'),
  [
    ((True, 40), (True, 80), (2, '')),
    ((True, 40), (False, 100), (2.5, '>')),
    ((False, 100), (True, 80), (0.8, '<')),
  ],
)
def test_a_run_that_fails_makes_the_saving_a_bound(own, other, expected):
  own, other = (
    savings.Need(is_reached, 1, models) for is_reached, models in (own, other)
  )
  assert savings.saving(own, other) == expected


def test_two_runs_that_fail_say_nothing_of_the_saving():
  failed = savings.Need(False, 1, 100)
  ratio, bound = savings.saving(failed, failed)
  assert np.isnan(ratio) and bound == '?'


@pytest.mark.parametrize(
  ('bounds', 'expected'),
  [(('', ''), ''), (('', '>'), '>'), (('<', '<'), '<')]
  + [((a, b), '?') for a, b in (('>', '<'), ('', '?'), ('>', '?'))],
)
def test_the_mean_of_bounds_is_a_bound_to_the_same_side(bounds, expected):
  ratio, bound = savings.mean_saving([(1.0, bounds[0]), (4.0, bounds[1])])
  assert bound == expected
  # So that to save a half and to spend the double is to save nothing.
  assert ratio == pytest.approx(2)


def test_smoothing_is_the_mean_of_the_last_tests():
  tests = [0.5, 0.6, 0.8, 0.9]
  expected = [0.5, 1.1 / 2, 1.9 / 3, 2.3 / 3]
  some = curve('per_fed_avg', 0, tests, smoothing=3)
  np.testing.assert_allclose(some.accuracy, expected)
  np.testing.assert_array_equal(curve('fed_avg', 0, tests).accuracy, tests)


def test_the_largest_loss_is_against_the_best_before():
  # Smoothing hides no fall.
  for smoothing in (1, 3):
    tests = [0.2, 0.9, 0.7, 0.95, 0.8, 0.99]
    some = curve('pfl_dyn', 0, tests, smoothing=smoothing)
    assert some.largest_loss() == (pytest.approx(0.2), 3)
  assert curve('pfl_dyn', 0, [0.1, 0.2]).largest_loss()[0] == 0


@pytest.mark.parametrize(
  ('method', 'personalization', 'expected'),
  [
    ('fed_avg', 'maml', False),
    ('per_fed_avg', 'maml', True),
    ('fed_avg', 'none', True),
    ('pfl_dyn', 'maml', False),
    ('own', 'maml', False),
  ],
)
def test_methods_are_compared_with_the_one_that_trains_as_it_is_tested(
  method, personalization, expected
):
  assert savings.is_uncorrected(method, personalization) == expected


def test_a_curve_has_the_rounds_with_a_test(tmp_path):
  accuracy = 'evaluation/by_client/accuracy'
  names = ['round', 'distributor/models', 'aggregator/models']
  names += [f'{accuracy}/{name}' for name in ('mean', 'q10', 'q90')]
  lines = [names, [0, '', '', 0.1, 0, 0.2], [1, 3, 4, '', '', '']]
  lines += [[2, 6, 8, 0.5, 0.25, 0.75]]
  (tmp_path / 'metrics.csv').write_text(
    '\n'.join(','.join(map(str, line)) for line in lines) + '\n'
  )
  rows = folder_lib.RunFolder(str(tmp_path)).read_metrics()
  found = savings.curve(settings_lib.resolve(seed=3), rows)
  assert (found.method, found.personalization) == ('pfl_dyn', 'maml')
  assert (found.seed, found.settings['method']) == (3, 'pfl_dyn')
  assert [
    list(values)
    for values in (found.rounds, found.models, found.tests, found.low)
  ] == [[0, 2], [0, 14], [0.1, 0.5], [0, 0.25]]
  assert list(found.high) == [0.2, 0.75]
