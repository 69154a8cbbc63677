import os

# Read when TensorFlow is imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import pytest


@pytest.fixture(scope='session')
def runtime():
  """One worker for all the tests of this process that ask for it."""
  from tff_debias import runtime as runtime_lib

  with runtime_lib.local_context():
    yield
