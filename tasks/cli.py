"""Starts and ends a program: flags first, TensorFlow later, clear errors."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import gc
import importlib
import logging
import operator
import os
import re
import signal
import sys
import textwrap
import types
from typing import Any
from typing import NoReturn
from typing import TypeAlias

from tasks.runs import errors

#: The values of the flags of a program, by name.
Args: TypeAlias = types.SimpleNamespace
#: The work of a program after its flags are checked.
Job = Callable[[], None]

_KINDS: Mapping[str, type] = {'N': int, 'X': float, '': bool}
_BOOLS = {'true': True, 'True': True, 'false': False, 'False': False}
_BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
  'above': operator.gt,
  'at least': operator.ge,
  'below': operator.lt,
  'at most': operator.le,
}


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag --NAME=VALUE, as the text of a program has it.

  The letters for the value say its kind: `N` is an integer, `X` a number, none
  a flag --NAME or --noNAME, and others are text. `N,N,…` is a list, and `N…` a
  flag that can be given several times. The meaning is for people, but «at least
  1», «above 0», «below 1», «at most 2» and «One of a, b.» are checked too.
  """

  group: str
  name: str
  value: str
  meaning: str
  default: str | None = None

  @property
  def is_repeated(self) -> bool:
    """Whether its value is the list of all that are given."""
    return self.value.endswith('…') and ',' not in self.value

  def read(self, text: str) -> Any:
    """The value that a text gives; a wrong one is a `UserError`."""
    kind = _KINDS.get(re.split('[,…]', self.value)[0], str)
    convert = _BOOLS.__getitem__ if kind is bool else kind
    is_list = ',' in self.value
    parts = [p for p in text.split(',') if p] if is_list else [text]
    try:
      values = [convert(part) for part in parts]
    except (ValueError, KeyError) as e:
      raise errors.UserError(
        f'--{self.name}={text} must be of {kind.__name__}. See --help.'
      ) from e
    for value in values:
      self.check(value)
    return values if is_list else values[0]

  def check(self, value: Any) -> None:
    """Raises a `UserError` if a value is not as the meaning says."""
    bounds = '|'.join(_BOUNDS)
    for words, limit in re.findall(rf'({bounds}) (\d+\.?\d*)\b', self.meaning):
      if not _BOUNDS[words](value, float(limit)):
        raise errors.UserError(
          f'--{self.name}={value} must be {words} {limit}. See --help.'
        )
    if choices := re.search(r'One of ((?:\w+, )+\w+)\.', self.meaning):
      known = choices[1].split(', ')
      if value not in known:
        raise errors.UserError(
          f'--{self.name}={value} is not one of {choices[1]}.'
          + errors.did_you_mean(value, known)
        )

  def help(self, default: Any) -> str:
    """The lines of --help, with a default in brackets; no word is broken."""
    head = f'--{self.name}={self.value}' if self.value else f'--[no]{self.name}'
    text = self.meaning
    if default not in (None, '', []):
      shown = default if isinstance(default, list) else [default]
      text += f' [{", ".join(map(str, shown))}]'
    lines = textwrap.wrap(
      text, 52, break_long_words=False, break_on_hyphens=False
    )
    if len(head) > 24:
      lines.insert(0, '')
    return f'  {head:26}{lines[0]}'.rstrip() + ''.join(
      f'\n{28 * " "}{line}' for line in lines[1:]
    )


def read_flags(text: str) -> list[Flag]:
  """The flags in a text: a line --NAME=VALUE, two spaces and the meaning.

  The meaning can go on in lines with a deeper indent, and end with a default in
  brackets. A line that ends with a colon names the group of the flags below.
  """
  flags = []
  for group, block in re.findall(r'^(\w+):\n((?:  .*\n)+)', text, re.M):
    for head, rest in re.findall(r'^  --(\S+)  (.*(?:\n    .*)*)', block, re.M):
      name, _, value = head.removeprefix('[no]').partition('=')
      meaning, default = ' '.join(rest.split()), None
      if found := re.fullmatch(r'(.*) \[(.*)\]', meaning):
        meaning, default = found.groups()
      flags.append(Flag(group, name, value, meaning, default))
  return flags


def parse(
  usage: str,
  argv: Sequence[str],
  shared: Iterable[Flag] = (),
  defaults: Callable[[Args], Mapping[str, Any]] = vars,
) -> Args:
  """The values of the flags of a program; a wrong flag is a `UserError`.

  With --help it prints the help and ends the program.

  Args:
    usage: What the program does, an empty line, its flags as in `read_flags`,
      and examples below «Examples:».
    argv: The flags as they are given. The result has them as `argv`, too.
    shared: Flags of other texts, which come first in their groups.
    defaults: Gives what --help shows for flags that are `None`.
  """
  flags = {flag.name: flag for flag in (*shared, *read_flags(usage))}
  args = Args(argv=argv)
  for name, flag in flags.items():
    default = flag.default and flag.read(flag.default)
    setattr(args, name, [] if flag.is_repeated else default)
  rest = iter(argv)
  for argument in rest:
    if argument in ('--help', '-h'):
      continue
    name, is_given, text = argument.partition('=')
    flag = _find(name, flags)
    if not is_given and flag.value:
      text = next(rest, '')
    elif not is_given:
      text = 'true' if name == f'--{flag.name}' else 'false'
    value = flag.read(text)
    if flag.is_repeated:
      value = [*getattr(args, flag.name), value]
    setattr(args, flag.name, value)
  if {'--help', '-h'} & set(argv):
    given = {k: v for k, v in vars(args).items() if v is not None}
    values = {**defaults(args), **given}
    about, _, _ = usage.strip().partition('\n\n')
    print(about)
    for group in dict.fromkeys(flag.group for flag in flags.values()):
      print(f'\n{group}:')
      for flag in flags.values():
        if flag.group == group:
          print(flag.help(values.get(flag.name)))
    print(usage[usage.index('\nExamples:') :].rstrip())
    sys.exit(0)
  return args


def _find(name: str, flags: Mapping[str, Flag]) -> Flag:
  """The flag --NAME or, without a value, --noNAME."""
  if not name.startswith('--'):
    raise errors.UserError(f'There is an argument without a flag, {name}.')
  negated = flags.get(name.removeprefix('--no'))
  if negated and not negated.value:
    return negated
  if name[2:] not in flags:
    hint = errors.did_you_mean(name[2:], flags)
    raise errors.UserError(f'There is no flag {name}.{hint} See --help.')
  return flags[name[2:]]


def run(prepare: Callable[[Sequence[str]], Job]) -> NoReturn:
  """Prepares the job of the command line, imports TFF, and does the job.

  Importing TFF takes seconds, so `prepare` checks all that it can without. An
  error made for people is one line, with exit code 2, or 1 if the work failed;
  any other error shows its traceback. Ctrl-C and SIGTERM end the process, and
  those that it has started, with 130.
  """
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  # A file is not filled with bars: tqdm takes its defaults from here.
  if not sys.stderr.isatty():
    os.environ.setdefault('TQDM_MININTERVAL', '30')
  kinds: tuple[type[Exception], ...] = (errors.UserError,)
  try:
    job = prepare(sys.argv[1:])
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    for name in ('absl', 'jax._src.xla_bridge'):
      logging.getLogger(name).setLevel(logging.ERROR)
    importlib.import_module('tensorflow_federated')
    from tff_debias import export
    from tff_debias import runtime
    from tff_debias import storage

    kinds += (runtime.ComputationError, storage.ClientStorageError)
    kinds += (export.ExportError,)
    # TFF imports JAX. A Ctrl-C that falls into JAX's callback of the garbage
    # collector would be lost (2 of 150 in rounds of 20 ms).
    gc.callbacks.clear()
    job()
  except kinds as e:
    print(f'Error: {e}', file=sys.stderr)
    sys.exit(2 if isinstance(e, errors.UserError) else 1)
  except BrokenPipeError:  # Its reader, such as `head`, has read enough.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except KeyboardInterrupt:
    print(
      '\nStopped. The same command goes on, from the last checkpoint if there'
      ' is one.',
      file=sys.stderr,
    )
    sys.exit(130)
  sys.exit(0)
