import os
import shutil

import pytest

from tasks.runs import errors
from tests import small_models
from tests.tasks import small_runs


@pytest.mark.slow
def test_a_running_folder_is_only_read(copy_run, capsys):
  folder = copy_run('proto')
  shutil.rmtree(folder.evaluation, ignore_errors=True)
  with folder.lock():
    before = small_models.snapshot(folder.path)
    flags = [
      '--round=2',
      '--max_clients=5',
      '--few_shot=',
      '--local_training=0',
    ]
    small_runs.prepare('evaluate', f'--run={folder.path}', *flags)()
  assert 'after round 2' in capsys.readouterr().out
  after = small_models.snapshot(folder.path)
  new = {path for path in after if path.startswith('evaluation')}
  assert {path: after[path] for path in after.keys() - new} == before
  files = {os.path.basename(path) for path in new if after[path] is not None}
  assert files == {
    *('clients.csv', 'histogram.pdf', 'histogram.png', 'summary.md')
  }


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ([], 'Name the folder of the run: --run=runs/NAME'),
    (['--run=/nowhere'], '/nowhere holds no run'),
    (['--rum=x'], 'There is no flag --rum. Did you mean run'),
  ],
)
def test_wrong_flags_say_what_would_be_right(flags, said):
  with pytest.raises(errors.UserError, match=said):
    small_runs.prepare('evaluate', *flags)


def test_a_few_shot_curve_is_of_positive_numbers(runs):
  with pytest.raises(errors.UserError, match='--few_shot=1,0 must be positive'):
    small_runs.prepare(
      'evaluate', f'--run={runs["proto"].path}', '--few_shot=1,0'
    )
