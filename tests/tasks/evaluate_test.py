import os
import shutil

import pytest

from tests import small_models
from tests.tasks import small_runs


@pytest.mark.slow
def test_a_running_folder_is_only_read(copy_run):
  folder = copy_run('proto')
  shutil.rmtree(folder.evaluation, ignore_errors=True)
  with folder.lock():
    before = small_models.snapshot(folder.path)
    result = small_runs.run_program(
      'evaluate',
      f'--run={folder.path}',
      *('--round=2', '--max_clients=5', '--few_shot='),
    )
  assert result.returncode == 0, result.stderr
  assert 'after round 2' in result.stdout
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
    ([], 'Error: Name the folder of the run: --run=runs/NAME'),
    (['--run=/nowhere'], 'Error: /nowhere holds no run'),
    (['--rum=x'], "Unknown command line flag 'rum'. Did you mean: run"),
  ],
)
def test_wrong_flags_do_not_wait_for_tensorflow(flags, said):
  result = small_runs.run_program(
    'evaluate', *flags, options=('-X', 'importtime')
  )
  assert result.returncode != 0
  assert said in result.stderr
  assert 'Traceback' not in result.stderr
  assert 'tensorflow' not in result.stderr
