import os
import shutil

import pytest

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
