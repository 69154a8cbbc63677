"""Starts and ends a program: flags first, TensorFlow later, clear errors."""

from collections.abc import Callable
import gc
import importlib
import logging as std_logging
import os
import re
import sys

from absl import app
from absl import flags
from absl import logging

from tasks.runs import errors


def run(
  main: Callable[[], None],
  check_flags: Callable[[], object],
  next_time: str = 'The same command goes on from the last checkpoint.',
) -> None:
  """Parses and checks the flags, imports TFF, and runs `main`.

  Importing TFF takes seconds; `--help` and errors in flags come before. But it
  is imported while absl parses the flags: Keras does not work if it is first
  imported under `app.run`. An error made for people is one line, and the
  process ends with 2; any other error shows its traceback. Ctrl-C ends it with
  130. `next_time` is the last sentence then.
  """

  def parse(argv: list[str]) -> list[str]:
    try:
      arguments = flags.FLAGS(argv)
    except flags.Error as e:
      _fail(f'{e}. See --help')
    if len(arguments) > 1:
      _fail(f'unexpected argument {arguments[1]!r}; see --help')
    try:
      check_flags()
    except errors.UserError as e:
      _fail(e)
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(_is_for_the_user)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    importlib.import_module('tensorflow_federated')
    # TFF imports JAX. A Ctrl-C that falls into JAX's callback of the garbage
    # collector would be lost (2 of 150 in rounds of 20 ms).
    gc.callbacks.clear()
    return arguments

  def guarded_main(unused_argv: list[str]) -> None:
    try:
      main()
    except Exception as e:
      from tff_debias import runtime
      from tff_debias import storage

      kinds = (runtime.ComputationError, storage.ClientStorageError)
      if not isinstance(e, (errors.UserError, *kinds)):
        raise
      _fail(e, 2 if isinstance(e, errors.UserError) else 1)

  try:
    app.run(guarded_main, flags_parser=parse)
  except KeyboardInterrupt:
    print(f'\nStopped. {next_time}', file=sys.stderr)
    sys.exit(130)


def _is_for_the_user(record: std_logging.LogRecord) -> bool:
  """Whether a message is an error, or a warning of this project."""
  is_own = re.search(r'/(tasks|tff_debias)/', record.pathname) is not None
  return is_own or record.levelno >= std_logging.ERROR


def _fail(message: object, exit_code: int = 2) -> None:
  print(f'Error: {message}', file=sys.stderr)
  sys.exit(exit_code)
