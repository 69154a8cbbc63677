"""The table of methods, and the classes that the settings of one name.

Flags, titles and lines are derived from the table. A correction that the
library gains is a row of `CORRECTIONS`, and a method with it a row of
`METHODS`. Of your own is a class or a function that a setting names as
`MODULE:NAME(ARGUMENT=VALUE, ...)`, whose values are literals of Python.
"""

import ast
from collections.abc import Mapping
import importlib
from typing import Any
from typing import NamedTuple

from tasks import catalog
from tasks.runs import errors


class Method(NamedTuple):
  """A method: its correction, and whether it personalizes in training.

  `line` is the place of its line in `figures.LINES`, the same in all figures.
  """

  title: str
  correction: str
  personalizes: bool
  line: int


class Part(NamedTuple):
  """A class of `tff_debias`, and the setting that each of its arguments is."""

  class_name: str
  arguments: Mapping[str, str] = {}


METHODS: Mapping[str, Method] = {
  'fed_avg': Method('FedAvg', 'none', False, 3),
  'per_fed_avg': Method('Per-FedAvg', 'none', True, 1),
  'fed_prox': Method('FedProx', 'prox', False, 4),
  'fed_dyn': Method('FedDyn', 'dyn', False, 5),
  'pfl_dyn': Method('PFLDyn', 'dyn', True, 0),
  'scaffold': Method('SCAFFOLD', 'scaf', False, 6),
  'pfl_scaf': Method('PFLScaf', 'scaf', True, 2),
}

CORRECTIONS: Mapping[str, Part] = {
  'none': Part('NoCorrection'),
  'dyn': Part('Dyn', {'alpha': 'alpha'}),
  'scaf': Part('Scaf', {'num_steps': 'local_steps'}),
  'prox': Part('Prox', {'mu': 'mu'}),
}

PERSONALIZATIONS: Mapping[str, Part] = {
  'none': Part('NoPersonalization'),
  'maml': Part(
    'Maml',
    {
      'num_steps': 'maml_steps',
      'learning_rate': 'maml_learning_rate',
      'first_order': 'maml_first_order',
    },
  ),
  'proto': Part('Proto'),
}

#: The parts by the setting that names one.
PARTS: Mapping[str, Mapping[str, Part]] = {
  'correction': CORRECTIONS,
  'personalization': PERSONALIZATIONS,
  'tested_personalization': {
    name: part for name, part in PERSONALIZATIONS.items() if name != 'none'
  },
}

#: The settings that have an effect only with some values of another one.
ONLY_WITH: Mapping[str, tuple[str, tuple[str, ...]]] = {
  'classes_per_client': ('partition', ('acid', 'alid')),
  'concentration': ('partition', ('dirichlet',)),
  **{
    setting: (kind, (name,))
    for kind in ('correction', 'personalization')
    for name, part in PARTS[kind].items()
    for setting in part.arguments.values()
    if setting != 'local_steps'  # Every method has local steps.
  },
}

_TITLES = {
  **{name: method.title for name, method in METHODS.items()},
  **{name: row.title for name, row in catalog.TASKS.items()},
  'none': 'No personalization',
  'maml': 'MAML',
  'proto': 'Prototypes',
}


def find(correction: str | None, personalization: str | None) -> str | None:
  """The method with a correction that personalizes, or not; `None` for none."""
  parts = (correction, personalization != 'none')
  found = [name for name, row in METHODS.items() if row[1:3] == parts]
  return found[0] if found else None


def title(name: str) -> str:
  """The name in papers of a method, a personalization or a task."""
  return _TITLES.get(name, name)


def normalized(setting: str, text: str) -> str:
  """The name of a part; your own is the same text however it is typed."""
  if text in PARTS.get(setting, {}):
    return text
  module, call = _parse(setting, text)
  return f'{module}:{ast.unparse(call).removesuffix("()")}'


def _parse(setting: str, text: str) -> tuple[str, ast.Call]:
  """The module and the call of what is your own; imports nothing."""
  module, _, call = text.partition(':')
  try:
    tree = ast.parse(call.strip(), mode='eval').body
    made = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(made.func, ast.Name) or made.args:
      raise ValueError(call)
    for keyword in made.keywords:
      ast.literal_eval(keyword.value)
  except (SyntaxError, ValueError) as e:
    names = PARTS.get(setting, {})
    known = f'one of {", ".join(names)}, or ' if names else ''
    raise errors.UserError(
      f'--{setting}={text} must be {known}one of your own,'
      ' MODULE:NAME(ARGUMENT=VALUE, ...) with literals as values.'
      + errors.did_you_mean(text, names)
    ) from e
  return module, made


def build(setting: str, settings: Any) -> Any:
  """Makes the correction or the personalization that a setting names."""
  # It imports TensorFlow, for which errors in flags should not wait.
  import tff_debias

  text = getattr(settings, setting)
  if part := PARTS[setting].get(text):
    arguments = {k: getattr(settings, v) for k, v in part.arguments.items()}
    return getattr(tff_debias, part.class_name)(**arguments)
  made = call_own(setting, text)
  base = 'Correction' if setting == 'correction' else 'Personalization'
  if not isinstance(made, getattr(tff_debias, base)):
    raise errors.UserError(f'--{setting}={text} is not a tff_debias.{base}.')
  return made


def call_own(setting: str, text: str, *arguments: Any) -> Any:
  """Calls what is your own, with `arguments` before those in the text."""
  module, call = _parse(setting, text)
  name, hint = ast.unparse(call.func), ''
  try:
    found = vars(importlib.import_module(module))
    hint = errors.did_you_mean(name, found.keys() - {name})
    named = {k.arg or '': ast.literal_eval(k.value) for k in call.keywords}
    return found[name](*arguments, **named)
  # Whatever the module of the user raises.
  except Exception as e:
    from tff_debias import checks

    raise errors.UserError(
      f'--{setting}={text} cannot be made: {type(e).__name__}:'
      f' {checks.first_line(e)}. The module must be in the current folder, on'
      f' PYTHONPATH, or installed.{hint}'
    ) from e
