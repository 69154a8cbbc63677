import csv
import json
import os

import numpy as np
import pytest

from tasks import compare as compare_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tests.small_models import snapshot
from tests.tasks import small_runs

_FLAGS = [
  *('--personalizations=none', '--seeds=3', '--num_clients=8'),
  *('--clients_per_round=2', '--local_steps=2', '--rounds_per_evaluation=1'),
  '--runs_at_a_time=1',
]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--methods=pfl_dynn'], 'method=pfl_dynn is not one of .* mean pfl_dyn?'),
    (['--task=cifar'], 'Did you mean cifar10'),
    (['--personalizations=mamml'], 'Did you mean maml?'),
    (['--seeds=0,x'], '--seed=x must be of int'),
    (['--methods='], 'must not be empty'),
    (
      ['--methods=per_fed_avg', '--alpha=7'],
      '--alpha=7.0 has no effect on any of the methods. .*Leave it out',
    ),
    (
      ['--personalizations=proto', '--nomaml_first_order'],
      '--maml_first_order=False has no effect on any of the methods',
    ),
    (['--targets=0.9,high'], '--targets=0.9,high must be numbers'),
    (['--override=pfl_dyn/maml:alpha'], 'must give NAME=VALUE'),
    (
      ['--override=pfl_dyn/maml:alfa=1'],
      'alfa is not one of the settings that .* Did you mean alpha',
    ),
    (['--override=pfl_dyn/maml:alpha=x'], '--alpha=x must be of float'),
    (['--override=fed_dyn/none:alpha=1'], '=fed_dyn/none is none of the runs'),
    (
      ['--override=pfl_dyn/maml:clients_per_round=9'],
      'clients_per_round is not one of the settings that may differ',
    ),
  ],
)
def test_wrong_flags_say_what_would_be_right(flags, message):
  with pytest.raises(errors.UserError, match=message):
    compare_lib.prepare(flags)


def test_only_one_comparison_has_the_folder(tmp_path):
  compare = compare_lib.prepare([f'--output_dir={tmp_path}'])
  with folder_lib.RunFolder(str(tmp_path)).lock():
    with pytest.raises(
      errors.UserError, match=f'Process {os.getpid()} is running in {tmp_path}'
    ):
      compare()
  assert os.listdir(tmp_path) == ['lock']


def test_the_settings_of_every_run_are_shown(capsys):
  with pytest.raises(SystemExit) as end:
    compare_lib.prepare(
      ['--methods=fed_avg,pfl_dyn', '--seeds=7', '--show_settings']
    )
  assert end.value.code == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4
  assert all('--rounds=100 ' in line and '--seed=7' in line for line in lines)
  (own,) = [line for line in lines if 'pfl_dyn_maml' in line]
  assert '--maml_learning_rate=1.0' in own


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


@pytest.mark.slow
def test_compares_and_trains_nothing_twice(tmp_path, monkeypatch, capsys):
  module = small_runs.own_module(tmp_path, monkeypatch)
  folder = tmp_path / 'comparison'
  flags = ['--methods=fed_avg,fed_dyn', '--rounds=2', '--local_training=3']
  flags += [*_FLAGS, f'--output_dir={folder}']
  wrong = [*flags, f'--correction={module}:Pall(gamma=1)']
  with pytest.raises(errors.UserError, match='Did you mean Pull'):
    small_runs.prepare('compare', *wrong)()
  flags += [
    f'--correction={module}:Pull(gamma=9, beside=1.0)',
    '--override=Pull(gamma=9, beside=1.0)/none:learning_rate=0.3',
  ]
  small_runs.prepare('compare', *flags, '--targets=')()
  said = capsys.readouterr().out
  assert 'FedDyn' in said and 'after 3 steps of size 0.2 on all' in said
  assert '| Pull(gamma=9, beside=1.0) |' in said
  assert '--num_clients=8 --clients_per_round=2' in said
  files = snapshot(folder)
  assert {f'comparison.{kind}' for kind in ('md', 'csv', 'png', 'pdf')} <= {
    os.path.basename(name) for name in files
  }
  # Without targets there is nothing to save on the way to them.
  assert {r['saving'] for r in read(folder / 'comparison.csv')} == {''}
  small_runs.prepare('compare', *flags, '--targets=0.999', '--smoothing=9')()
  again = snapshot(folder)
  assert 'not reached' in again['comparison.md'].decode()
  trained = [name for name in files if '_seed3' in name]
  assert 'alone_seed3.json' in trained
  assert all(files[name] == again[name] for name in trained)
  # The initial model is in no mean.
  rows = {row['method']: row for row in read(folder / 'comparison.csv')}
  none, dyn, own = rows.values()
  alphas = [row['settings/alpha'] for row in rows.values()]
  assert alphas == ['', '0.1', '']
  assert (none['gap'], own['method']) == ('0', 'Pull(gamma=9, beside=1.0)')
  gap = float(own['final_accuracy']) - float(none['final_accuracy'])
  assert gap != 0 and float(own['gap']) == pytest.approx(gap, abs=1e-6)
  points = read(folder / 'curves.csv')
  names = ['fed_avg', 'fed_dyn', 'Pull-gamma=9,-beside=1.0-']
  for name, row in zip(names, rows.values(), strict=True):
    changed = '_learning_rate=0.3' if row is own else ''
    tests = [
      float(row['evaluation/by_client/accuracy/mean'])
      for row in read(folder / f'{name}_none{changed}_seed3' / 'metrics.csv')
      if row['round'] != '0'
    ]
    assert len(tests) == 2
    found = float(row['final_accuracy'])
    np.testing.assert_allclose(found, np.mean(tests), rtol=1e-6)
    # A curve is kept as it was measured.
    curve = [p for p in points if p['method'] == row['method']]
    assert [point['round'] for point in curve] == ['1', '2']
    np.testing.assert_allclose(
      [float(point['accuracy']) for point in curve], tests, rtol=1e-6
    )
  # The figures of other settings are not taken for these.
  with pytest.raises(errors.UserError, match='batch_size=10 there, 7 here'):
    small_runs.prepare('compare', *flags, '--batch_size=7')()
  path = folder / 'alone_seed3.json'
  alone = json.loads(path.read_text())
  alone['settings']['steps'] = 4
  path.write_text(json.dumps(alone | {'accuracy': 7.0}))
  small_runs.prepare('compare', *flags)()
  assert json.loads(path.read_text())['accuracy'] <= 1


def folders(capsys, program, *flags):
  """The folder of a comparison, and those of its runs."""
  given = ['--methods=per_fed_avg,pfl_dyn', '--personalizations=maml']
  with pytest.raises(SystemExit):
    small_runs.prepare(program, *given, '--seeds=0', '--show_settings', *flags)
  lines = capsys.readouterr().out.splitlines()
  runs = [line.partition(': ')[0] for line in lines]
  return [os.path.dirname(runs[0]), *map(os.path.basename, runs)]


def test_other_settings_have_another_folder(capsys):
  plain = folders(capsys, 'compare')
  assert plain == [
    'runs/compare_digits_alid',
    'per_fed_avg_maml_seed0',
    'pfl_dyn_maml_seed0',
  ]
  # The task's defaults and the rounds are not settings of other runs.
  same = folders(capsys, 'compare', '--num_clients=100', '--rounds=7')
  assert same == plain
  other = folders(capsys, 'compare', '--batch_size=7', '--partition=acid')
  assert other[0] == 'runs/compare_digits_acid_batch_size=7'
  # What only some runs have is in their names, and the others are not run anew.
  overridden = folders(capsys, 'compare', '--override=pfl_dyn/maml:alpha=0.5')
  assert overridden == [*plain[:2], 'pfl_dyn_maml_alpha=0.5_seed0']
  given = folders(capsys, 'compare', '--alpha=0.5', '--maml_steps=3')
  assert given[0] == 'runs/compare_digits_alid_maml_steps=3_alpha=0.5'


def test_a_tuning_leaves_its_grid_to_the_names_of_the_runs(capsys):
  assert folders(capsys, 'tune', '--grid=alpha=0.1,0.5') == [
    'runs/tune_digits_alid_validation_share=0.2',
    'per_fed_avg_maml_seed0',
    'pfl_dyn_maml_alpha=0.1_seed0',
    'pfl_dyn_maml_alpha=0.5_seed0',
  ]
