import signal
import subprocess
import sys

import pytest

from tasks import __main__
from tasks import catalog

_PROGRAM = """
import gc
import numpy as np
from tasks import cli
from tasks.runs import errors

def computation():
  assert not gc.callbacks  # There an interrupt would be lost.
  import tensorflow_federated as tff
  from tff_debias import runtime

  with runtime.local_context():
    @tff.tensorflow.computation(np.int32)
    def fail(x):
      import tensorflow as tf
      with tf.control_dependencies([tf.debugging.assert_equal(x, 1)]):
        return tf.identity(x)
    return fail(2)

def people():
  raise errors.UserError('say what is right.')

def bug():
  raise ValueError('a bug')

JOB = MAIN
cli.run(lambda argv: JOB() if JOB in (people, bug) else JOB)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ('main', 'code', 'said'),
  [
    ('people', 2, 'Error: say what is right.'),
    ('computation', 1, 'Error: '),
    ('bug', 1, 'ValueError: a bug'),
  ],
)
def test_only_errors_for_people_are_one_line(main, code, said):
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM.replace('MAIN', main)],
    capture_output=True,
    text=True,
  )
  lines = result.stderr.strip().split('\n')
  assert result.returncode == code, result.stderr
  assert lines[-1].startswith(said)
  assert (len(lines) == 1) == (main != 'bug')


_SLEEP = """
import time
from tasks import cli

def prepare(argv):
  print('ready', flush=True)
  time.sleep(60)

cli.run(prepare)
"""


def test_a_program_that_is_terminated_ends_as_by_an_interrupt():
  command = [sys.executable, '-c', _SLEEP]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  with subprocess.Popen(command, **pipes) as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
  assert process.returncode == 130
  assert said == (
    '\nStopped. The same command goes on, from the last checkpoint if there is'
    ' one.\n'
  )


_ALL = """
import contextlib, importlib, io, sys
from tasks.runs import errors
for name in 'train compare tune evaluate personalize benchmark'.split():
  prepare = importlib.import_module(f'tasks.{name}').prepare
  for flags in (['--help'], ['--rum=x']):
    with contextlib.redirect_stdout(io.StringIO()) as said:
      try:
        prepare(flags)
      except SystemExit as e:
        assert not e.code and said.getvalue().count('python -m') >= 3, name
      except errors.UserError as e:
        assert 'There is no flag --rum.' in str(e), name
assert not {'tensorflow', 'tensorflow_federated', 'jax'} & sys.modules.keys()
"""


def test_flags_do_not_wait_for_tensorflow():
  result = subprocess.run(
    [sys.executable, '-c', _ALL], capture_output=True, text=True, timeout=60
  )
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('name', catalog.TASKS)
def test_the_list_of_tasks_has_their_defaults(name):
  (line,) = [
    line for line in __main__.__doc__.splitlines() if f'  {name} ' in line
  ]
  words = line.replace(',', '').split()
  defaults = catalog.defaults(name)
  if name != 'npz':
    assert words[1] == str(defaults['num_clients'])
    classes = str(catalog.TASKS[name].classes)
    if held := defaults['classes_per_client']:
      classes = f'{held} of {classes}'
    assert f' {classes} ' in line
