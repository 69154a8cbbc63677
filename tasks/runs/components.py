"""Makes the corrections, personalizations and networks that settings name.

A name is that of the library, such as `dyn`, or a class or function of your
own: `MODULE:NAME(ARGUMENT=VALUE, ...)`, whose values are literals of Python.
"""

import ast
import importlib
from typing import Any

from tasks.runs import errors
from tasks.runs import methods


def parse(setting: str, text: str) -> tuple[str, ast.Call]:
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
    names = methods.PARTS.get(setting, {})
    known = f'one of {", ".join(names)}, or ' if names else ''
    raise errors.UserError(
      f'--{setting}={text} must be {known}one of your own,'
      ' MODULE:NAME(ARGUMENT=VALUE, ...) with literals as values.'
      + errors.did_you_mean(text, names)
    ) from e
  return module, made


def normalized(setting: str, text: str | None) -> str | None:
  """The name of a part; your own class is the same text however it is typed."""
  if text is None or text in methods.PARTS.get(setting, {}):
    return text
  module, call = parse(setting, text)
  return f'{module}:{ast.unparse(call).removesuffix("()")}'


def build(setting: str, settings: Any) -> Any:
  """Makes the correction or the personalization of resolved settings."""
  # It imports TensorFlow, for which errors in flags should not wait.
  import tff_debias

  text = getattr(settings, setting)
  if part := methods.PARTS[setting].get(text):
    arguments = {k: getattr(settings, v) for k, v in part.arguments.items()}
    return getattr(tff_debias, part.class_name)(**arguments)
  made = call_own(setting, text)
  base: type = tff_debias.Personalization
  if setting == 'correction':
    base = tff_debias.Correction
  if not isinstance(made, base):
    raise errors.UserError(
      f'--{setting}={text} is not a tff_debias.{base.__name__}.'
    )
  return made


def call_own(setting: str, text: str, *arguments: Any) -> Any:
  """Calls what is your own, with `arguments` before those in the text."""
  module, call = parse(setting, text)
  name, hint = ast.unparse(call.func), ''
  try:
    found = vars(importlib.import_module(module))
    hint = errors.did_you_mean(name, found.keys() - {name})
    return found[name](
      *arguments,
      **{k.arg or '': ast.literal_eval(k.value) for k in call.keywords},
    )
  # Whatever the module of the user raises.
  except Exception as e:
    from tff_debias import checks

    raise errors.UserError(
      f'--{setting}={text} cannot be made: {type(e).__name__}:'
      f' {checks.first_line(e)}. The module must be in the current folder, on'
      f' PYTHONPATH, or installed.{hint}'
    ) from e
