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


def test_only_one_comparison_has_the_folder(tmp_path):
  compare = compare_lib.prepare([f'--output_dir={tmp_path}'])
  with folder_lib.RunFolder(str(tmp_path)).lock():
    with pytest.raises(
      errors.UserError, match=f'Process {os.getpid()} is running in {tmp_path}'
    ):
      compare()
  assert os.listdir(tmp_path) == ['lock']


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


@pytest.mark.slow
def test_compares_and_trains_nothing_twice(tmp_path, monkeypatch, capsys):
  module = small_runs.own_module(tmp_path, monkeypatch)
  folder = tmp_path / 'comparison'
  flags = ['--methods=fed_avg', '--rounds=2', '--local_training=3']
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
  assert '| FedAvg ' in said and 'after 3 steps of size 0.2 on all' in said
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
  none, own = rows.values()
  rates = [row['settings/learning_rate'] for row in (none, own)]
  assert rates == ['0.2', '0.3']
  assert (none['gap'], own['method']) == ('0', 'Pull(gamma=9, beside=1.0)')
  gap = float(own['final_accuracy']) - float(none['final_accuracy'])
  assert gap != 0 and float(own['gap']) == pytest.approx(gap, abs=1e-6)
  points = read(folder / 'curves.csv')
  names = ['fed_avg', 'Pull-gamma=9,-beside=1.0-']
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
