import shutil

import pytest


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
  """A finished run of each personalization, to which tests only add files."""
  from tests.tasks import small_runs

  return {
    name: small_runs.train(str(tmp_path_factory.mktemp('runs') / name), name)
    for name in ('proto', 'maml')
  }


@pytest.fixture
def copy_run(runs, tmp_path):
  """Copies one of the runs, for a test that changes it."""
  from tasks.runs import folder as folder_lib

  def copy(name):
    path = str(tmp_path / 'copy')
    shutil.copytree(runs[name].path, path)
    return folder_lib.RunFolder(path)

  return copy
