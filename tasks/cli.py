"""Starts and ends a program: flags first, TensorFlow later, clear errors."""

from collections.abc import Callable
import gc
import logging as std_logging
import os
import re
import signal
import sys
import types

from absl import app
from absl import flags
from absl import logging


def run(
  main: Callable[[], None],
  check_flags: Callable[[], object],
  next_time: str = 'The same command goes on from the last checkpoint.',
) -> None:
  """Parses and checks the flags, imports TensorFlow, and runs `main`.

  Importing TensorFlow takes seconds; `--help` and errors in flags come before.
  But it is imported while absl parses the flags: Keras does not work if it is
  first imported under `app.run`. A `ValueError` is a message to the user, and
  the process ends with 2. An interrupt ends it with 130. `next_time` is the
  last sentence after an interrupt or an error of the disk.
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
    except ValueError as e:
      _fail(e)
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(_is_for_the_user)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf

    assert tf.keras.Sequential
    return arguments

  def guarded_main(unused_argv: list[str]) -> None:
    import tensorflow as tf

    # A closed terminal sends SIGHUP, which nohup ignores.
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    for number in stopping:
      if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, _interrupt)
    try:
      main()
    except ValueError as e:
      _fail(e)
    except (OSError, tf.errors.OpError) as e:
      _fail(f'{getattr(e, "message", e)}. Saved files stay. {next_time}')
    except KeyboardInterrupt:
      print(f'\nStopped. {next_time}', file=sys.stderr)
      sys.exit(130)

  app.run(guarded_main, flags_parser=parse)


def _is_for_the_user(record: std_logging.LogRecord) -> bool:
  """Whether a message is an error, or a warning of this project."""
  is_own = re.search(r'/(tasks|tff_debias)/', record.pathname) is not None
  return is_own or record.levelno >= std_logging.ERROR


def _interrupt(unused_number: int, frame: types.FrameType | None) -> None:
  """Raises `KeyboardInterrupt`, and waits if Python would lose it now.

  Python ignores an exception in a callback of the garbage collector. TFF
  imports JAX, which has such a callback, and a signal during a long call of TFF
  is often delivered in it. Then a timer sends another signal a moment later.
  """
  callbacks = [getattr(callback, '__code__', None) for callback in gc.callbacks]
  if frame is not None and frame.f_code in callbacks:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
  else:
    raise KeyboardInterrupt


def _fail(message: object) -> None:
  print(f'Error: {message}', file=sys.stderr)
  sys.exit(2)
