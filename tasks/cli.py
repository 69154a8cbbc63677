"""Starts and ends a program: flags first, TensorFlow later, clear errors."""

import argparse
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import gc
import importlib
import logging
import os
import re
import sys
import textwrap
from typing import Any
from typing import NoReturn

from tasks.runs import errors

_KINDS = {int: 'N', float: 'X', str: 'NAME', list: 'A,B,…'}

#: The work of a program after its flags are checked.
Job = Callable[[], None]


class Parser(argparse.ArgumentParser):
  """The flags of a program, --NAME=VALUE, in the groups of its help."""

  def __init__(self, program: str, about: str, examples: Sequence[str]):
    commands = (f'  python -m tasks.{program} {e}'.rstrip() for e in examples)
    super().__init__(
      f'tasks.{program}',
      f'python -m tasks.{program} [--NAME=VALUE ...]',
      about,
      'Examples:\n' + '\n'.join(commands),
      formatter_class=_Formatter,
      add_help=False,
      allow_abbrev=False,
    )
    self._by_group: dict[str, Any] = {}

  def add(
    self,
    group: str,
    name: str,
    help_text: str,
    default: Any = None,
    kind: type = str,
    at_least: int | None = None,
    repeated: bool = False,
  ) -> None:
    """Adds a flag; of the kind bool it is --NAME or --noNAME.

    A list is of texts between commas. `repeated` flags give a list too.
    """
    if group not in self._by_group:
      self._by_group[group] = self.add_argument_group(group)
    options: dict[str, Any] = {'help': help_text, 'default': default}
    options['type'] = functools.partial(convert, kind, at_least=at_least)
    if repeated:
      options['action'] = 'append'
    if kind is bool:
      options |= {'nargs': '?', 'const': True, 'metavar': ''}
      self.add_argument(
        f'--no{name}',
        dest=name,
        action='store_const',
        const=False,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
      )
    else:
      options['metavar'] = _KINDS[kind]
    self._by_group[group].add_argument(f'--{name}', **options)

  def parse(
    self,
    argv: Sequence[str],
    defaults: Callable[[argparse.Namespace], Mapping[str, Any]] | None = None,
  ) -> argparse.Namespace:
    """The values of the flags; a wrong flag is a `UserError`.

    With --help it prints the help and ends the program. `defaults` gives the
    values that stand there for flags that are `None`. The result has the flags
    as they were given, too, as `argv`.
    """
    asks = {'--help', '-h'}
    args, others = self.parse_known_args([a for a in argv if a not in asks])
    if asks & set(argv):
      values = {} if defaults is None else defaults(args)
      for action in self._actions:
        if action.default is None:
          action.default = values.get(action.dest)
      self.print_help()
      sys.exit(0)
    if others:
      name = others[0].partition('=')[0]
      if not name.startswith('--'):
        self.error(f'There is an argument without a flag, {others[0]}.')
      hint = errors.did_you_mean(
        name[2:], [a.dest for a in self._actions if a.help != argparse.SUPPRESS]
      )
      self.error(f'There is no flag {name}.{hint}')
    args.argv = argv
    return args

  def error(self, message: str) -> NoReturn:
    """Raises a `UserError`."""
    message = message.removeprefix('argument ').replace(': ', '=', 1)
    raise errors.UserError(f'{message} See --help.')


class _Formatter(argparse.RawDescriptionHelpFormatter):
  """Writes --NAME=VALUE, and the default in brackets; breaks no word."""

  def __init__(self, prog: str):
    super().__init__(prog, max_help_position=28, width=80)

  def _format_action_invocation(self, action: argparse.Action) -> str:
    name, value = action.option_strings[0], action.metavar
    return f'{name}={value}' if value else f'--[no]{name[2:]}'

  def _expand_help(self, action: argparse.Action) -> str:
    default = action.default
    if default in (None, '', []):
      return action.help or ''
    if isinstance(default, list):
      default = ','.join(default)
    return f'{action.help} [{default}]'

  def _split_lines(self, text: str, width: int) -> list[str]:
    return textwrap.wrap(
      text, width, break_long_words=False, break_on_hyphens=False
    )


def convert(kind: type, text: str, at_least: int | None = None) -> Any:
  """The value of a flag, of a kind; a wrong one is an `ArgumentTypeError`."""
  if kind is list:
    return [part for part in text.split(',') if part]
  try:
    if kind is bool:
      return {'true': True, 'false': False}[text.lower()]
    value = kind(text)
  except (ValueError, KeyError) as e:
    raise argparse.ArgumentTypeError(
      f'{text} must be of {kind.__name__}.'
    ) from e
  if at_least is not None and value < at_least:
    raise argparse.ArgumentTypeError(f'{text} must be at least {at_least}.')
  return value


def run(
  prepare: Callable[[Sequence[str]], Job],
  next_time: str = 'The same command goes on from the last checkpoint.',
) -> NoReturn:
  """Prepares the job of the command line, imports TFF, and does the job.

  Importing TFF takes seconds, so `prepare` checks all that it can without. An
  error made for people is one line, with exit code 2, or 1 if a round failed;
  any other error shows its traceback. Ctrl-C ends the process with 130, and
  `next_time` is the last sentence then.
  """
  kinds: tuple[type[Exception], ...] = (errors.UserError,)
  try:
    job = prepare(sys.argv[1:])
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    for name in ('absl', 'jax._src.xla_bridge'):
      logging.getLogger(name).addFilter(_is_for_the_user)
    importlib.import_module('tensorflow_federated')
    from tff_debias import runtime
    from tff_debias import storage

    kinds += (runtime.ComputationError, storage.ClientStorageError)
    # TFF imports JAX. A Ctrl-C that falls into JAX's callback of the garbage
    # collector would be lost (2 of 150 in rounds of 20 ms).
    gc.callbacks.clear()
    job()
  except kinds as e:
    print(f'Error: {e}', file=sys.stderr)
    sys.exit(2 if isinstance(e, errors.UserError) else 1)
  except KeyboardInterrupt:
    print(f'\nStopped. {next_time}', file=sys.stderr)
    sys.exit(130)
  sys.exit(0)


def _is_for_the_user(record: logging.LogRecord) -> bool:
  """Whether a message is an error, or a warning of this project."""
  is_own = re.search(r'/(tasks|tff_debias)/', record.pathname) is not None
  return is_own or record.levelno >= logging.ERROR
