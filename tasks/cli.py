"""How a binary starts and ends: flags first, TensorFlow later, clear errors."""

from collections.abc import Callable
import gc
import os
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

  The import takes seconds, which `--help` and wrong flags should not wait for.
  It must come before absl has finished: Keras is of no use when it is first
  imported under `app.run`.

  Args:
    main: The program. A `ValueError` is its message to the user and ends the
      process with 2, an interrupt with 130.
    check_flags: Raises a `ValueError` if a flag is wrong.
    next_time: What to tell who interrupted it or whose disk is full.
  """

  def parse(argv: list[str]) -> list[str]:
    # A console script is its own main module, and --help is of its flags.
    for flag in flags.FLAGS.get_key_flags_for_module(main.__module__):
      flags.FLAGS.register_key_flag_for_module(argv[0], flag)
    arguments = app.parse_flags_with_usage(argv)
    if len(arguments) > 1:
      _fail(f'unexpected argument {arguments[1]!r}; see --help')
    try:
      check_flags()
    except ValueError as e:
      _fail(e)
    logging.set_verbosity(logging.ERROR)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf

    assert tf.keras.Sequential
    return arguments

  def guarded_main(unused_argv: list[str]) -> None:
    import tensorflow as tf

    # The terminal is closed with SIGHUP, unless under nohup.
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    for number in stopping:
      if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, _interrupt)
    try:
      main()
    except ValueError as e:
      _fail(e)
    except (OSError, tf.errors.OpError) as e:
      _fail(f'{getattr(e, "message", e)}. What is saved stays. {next_time}')
    except KeyboardInterrupt:
      print(f'\nStopped. {next_time}', file=sys.stderr)
      sys.exit(130)

  app.run(guarded_main, flags_parser=parse)


def _interrupt(unused_number: int, frame: types.FrameType | None) -> None:
  """Raises `KeyboardInterrupt` where it is not lost.

  Python ignores what is raised in a callback of the garbage collector. JAX,
  which TFF imports, has one, and after a long call of TFF it is there that a
  signal arrives.
  """
  callbacks = [getattr(callback, '__code__', None) for callback in gc.callbacks]
  if frame is not None and frame.f_code in callbacks:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
  else:
    raise KeyboardInterrupt


def _fail(message: object) -> None:
  print(f'Error: {message}', file=sys.stderr)
  sys.exit(2)
