import collections
import os
import signal
import sys

# Read when TensorFlow is imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Two processes share the cores, and the tensors of tests are small.
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')

import pytest

# The tests start many processes. Each would compile TensorFlow's Python files
# anew, for 13 seconds, on machines that keep no bytecode.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
sys.dont_write_bytecode = False

# Shells start programs in the background so that they, and what they start,
# ignore interrupts, which some tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
  """Puts the files with slow tests first, or one process would end late."""
  seconds = collections.Counter()
  for item in items:
    if marker := item.get_closest_marker('slow'):
      seconds[item.path] += marker.kwargs.get('seconds', 8)
  items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(scope='session')
def runtime():
  """One context for all the tests of this process that ask for it."""
  from tff_debias import runtime as runtime_lib

  with runtime_lib.local_context():
    yield
