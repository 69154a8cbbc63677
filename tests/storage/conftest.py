import pytest
import storage_runs


@pytest.fixture(scope='session')
def shared(runtime, tmp_path_factory):
  """A process and its folder, in which each test has runs of its own."""
  folder = tmp_path_factory.mktemp('clients')
  return storage_runs.build(folder), folder


@pytest.fixture
def process(shared):
  return shared[0]
