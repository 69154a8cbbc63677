import shutil

import pytest


@pytest.fixture(scope='session')
def runs(tmp_path_factory, runtime):
  """The runs `proto` and `maml`, to which tests only add files.

  Each is trained when a test first asks for it.
  """
  from tasks.runs import folder as folder_lib
  from tests.tasks import small_runs

  class Runs(dict):
    def __missing__(self, name):
      path = str(tmp_path_factory.mktemp('runs') / name)
      self[name] = folder_lib.RunFolder(path)
      small_runs.train(self[name], name)
      return self[name]

  return Runs()


@pytest.fixture
def copy_run(runs, tmp_path):
  """Copies one of the runs, for a test that changes it."""
  from tasks.runs import folder as folder_lib

  def copy(name):
    path = str(tmp_path / 'copy')
    shutil.copytree(runs[name].path, path)
    return folder_lib.RunFolder(path)

  return copy
