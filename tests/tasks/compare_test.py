import csv
import os

import numpy as np
import pytest
from small_models import snapshot

from tasks.runs import folder as folder_lib
from tests.tasks import small_runs


def compare(*flags):
  return small_runs.run_program('compare', *flags)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('--methods=pfl_dynn',), 'method=pfl_dynn is not one of .* mean pfl_dyn?'),
    (('--task=cifar',), 'Did you mean cifar10'),
    (('--personalizations=mamml',), 'Did you mean maml?'),
    (('--seeds=0,x',), '--seed=x must be of int'),
    (('--methods=',), 'must not be empty'),
    (
      ('--methods=per_fed_avg', '--alpha=7'),
      '--alpha=7.0 has no effect on any of the methods. .* Leave it out',
    ),
    (
      ('--personalizations=proto', '--nomaml_first_order'),
      '--maml_first_order=False has no effect on any of the methods',
    ),
    (('--targets=0.9,high',), '--targets=0.9,high must be numbers'),
    (('--override=pfl_dyn/maml:alpha',), 'must give NAME=VALUE'),
    (
      ('--override=pfl_dyn/maml:alfa=1',),
      'alfa is not one of the settings that .* Did you mean alpha',
    ),
    (('--override=pfl_dyn/maml:alpha=x',), '--alpha=x must be of float'),
    (('--override=fed_dyn/none:alpha=1',), '=fed_dyn/none is none of the runs'),
    (
      ('--override=pfl_dyn/maml:clients_per_round=9',),
      'clients_per_round is not one of the settings that may differ',
    ),
  ],
)
def test_wrong_flags_say_what_would_be_right(flags, message):
  result = compare(*flags)
  assert result.returncode == 2
  for part in message.split('.*'):
    assert part.strip() in result.stderr, result.stderr
  assert 'Traceback' not in result.stderr


def test_only_one_comparison_has_the_folder(tmp_path):
  with folder_lib.RunFolder(str(tmp_path)).lock():
    result = compare(f'--output_dir={tmp_path}', '--methods=pfl_dyn')
  assert result.returncode == 2
  assert f'Process {os.getpid()} is running in {tmp_path}' in result.stderr
  assert os.listdir(tmp_path) == ['lock']


@pytest.mark.slow
def test_compares_and_trains_nothing_twice(tmp_path):
  flags = [
    '--methods=per_fed_avg,pfl_dyn',
    '--personalizations=proto',
    '--seeds=3',
    *(
      '--rounds=2',
      '--num_clients=8',
      '--clients_per_round=2',
      '--local_steps=2',
    ),
    '--local_training=3',
    f'--output_dir={tmp_path / "comparison"}',
  ]
  result = compare(*flags, '--targets=')
  assert result.returncode == 0, result.stderr
  assert 'PFLDyn' in result.stdout and 'ServiceManager' not in result.stderr
  assert 'after 3 steps of size 0.1 on all' in result.stdout
  assert '--num_clients=8 --clients_per_round=2' in result.stdout
  files = snapshot(tmp_path)
  assert {f'comparison.{kind}' for kind in ('md', 'csv', 'png', 'pdf')} <= {
    os.path.basename(name) for name in files
  }
  # Without targets there is nothing to save on the way to them.
  with open(tmp_path / 'comparison' / 'comparison.csv', newline='') as file:
    assert {row['saving'] for row in csv.DictReader(file)} == {''}
  assert compare(*flags, '--targets=0.999', '--smoothing=9').returncode == 0
  again = snapshot(tmp_path)
  assert 'not reached' in again['comparison/comparison.md'].decode()
  trained = [name for name in files if '_seed3/' in name]
  assert trained and all(files[name] == again[name] for name in trained)
  # The initial model is in no mean.
  path = tmp_path / 'comparison' / 'comparison.csv'
  with open(path, newline='') as file:
    smoothed = {
      r['method']: float(r['final_accuracy']) for r in csv.DictReader(file)
    }
  with open(path.with_name('curves.csv'), newline='') as file:
    points = list(csv.DictReader(file))
  with open(path, newline='') as file:
    alphas = {r['method']: r['settings/alpha'] for r in csv.DictReader(file)}
  assert alphas == {'per_fed_avg': '', 'pfl_dyn': '0.1'}
  for method, accuracy in smoothed.items():
    metrics = tmp_path / 'comparison' / f'{method}_proto_seed3' / 'metrics.csv'
    with open(metrics, newline='') as file:
      tests = [
        float(row['evaluation/by_client/accuracy/mean'])
        for row in csv.DictReader(file)
        if row['round'] != '0'
      ]
    assert len(tests) == 2
    np.testing.assert_allclose(accuracy, np.mean(tests))
    # A curve is kept as it was measured.
    curve = [row for row in points if row['method'] == method]
    assert [row['round'] for row in curve] == ['1', '2']
    np.testing.assert_allclose(
      [float(row['accuracy']) for row in curve], tests, rtol=1e-6
    )
  # The figures of other settings are not taken for these.
  other = compare(*flags, '--batch_size=7')
  assert other.returncode == 2
  assert '--batch_size=10 there, 7 here' in other.stderr


@pytest.mark.slow
def test_a_correction_of_ones_own_is_compared(tmp_path):
  environment = small_runs.own_module(tmp_path)
  flags = [
    *('--methods=per_fed_avg', '--personalizations=proto', '--seeds=3'),
    *('--rounds=1', '--num_clients=8', '--clients_per_round=2'),
    *('--local_steps=2', f'--output_dir={tmp_path / "comparison"}'),
    '--local_training=0',
  ]

  def compare_own(*more):
    return small_runs.run_program('compare', *flags, *more, env=environment)

  wrong = compare_own('--correction=my_module:Pall(gamma=1)')
  assert wrong.returncode == 2 and 'Did you mean Pull?' in wrong.stderr
  assert not (tmp_path / 'comparison').exists()
  result = compare_own(
    '--correction=my_module:Pull(gamma=9, beside=1.0)',
    '--override=Pull(gamma=9, beside=1.0)/proto:learning_rate=0.2',
  )
  assert result.returncode == 0, result.stderr
  assert '| Pull(gamma=9, beside=1.0) |' in result.stdout
  with open(tmp_path / 'comparison' / 'comparison.csv', newline='') as file:
    none, own = csv.DictReader(file)
  assert (none['gap'], own['method']) == ('0', 'Pull(gamma=9, beside=1.0)')
  gap = float(own['final_accuracy']) - float(none['final_accuracy'])
  assert gap != 0 and float(own['gap']) == pytest.approx(gap, abs=1e-6)
  name = 'Pull-gamma=9,-beside=1.0-_proto_learning_rate=0.2_seed3'
  assert (tmp_path / 'comparison' / name / 'metrics.csv').exists()
