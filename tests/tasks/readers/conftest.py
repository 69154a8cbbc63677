import logging as std_logging

from absl import logging
import pytest


@pytest.fixture(autouse=True)
def _warnings_are_heard(monkeypatch):
  """Undoes what other tests' libraries do to logging in this process."""
  monkeypatch.setattr(std_logging.root.manager, 'disable', 0)
  logger = logging.get_absl_logger()
  monkeypatch.setattr(logger, 'propagate', True)
  monkeypatch.setattr(logger, 'disabled', False)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  yield
  logging.set_verbosity(verbosity)
