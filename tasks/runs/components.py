"""Makes the correction and the personalization that the settings name.

A name is either a built-in one, such as `dyn`, or the text
`MODULE:CLASS(NAME=VALUE, ...)`, for a class of one's own. The text is parsed,
never executed.
"""

import ast
from collections.abc import Mapping
import importlib
import inspect
import types
from typing import Any
from typing import NamedTuple

from tasks.runs import errors

_FORM = 'MODULE:CLASS or MODULE:CLASS(NAME=VALUE, ...)'


#: The names of what the package has, by the setting that names one.
BUILT_IN = types.MappingProxyType(
  {
    'correction': ('none', 'dyn', 'scaf', 'prox'),
    'personalization': ('none', 'maml', 'proto'),
    'tested_personalization': ('maml', 'proto'),
  }
)


class Component(NamedTuple):
  """A class, and the keyword arguments that make an object of it."""

  module: str
  name: str
  arguments: Mapping[str, Any]

  def __str__(self) -> str:
    """The text that `parse` takes, the same for all ways to write it."""
    listed = ', '.join(f'{k}={v!r}' for k, v in self.arguments.items())
    return f'{self.module}:{self.name}' + (f'({listed})' if listed else '')


def parse(setting: str, text: str) -> Component:
  """Reads `MODULE:CLASS(NAME=VALUE, ...)`; imports nothing.

  Values are literals of Python, such as `0.5` or `'a'`.
  """
  where = f'--{setting}={text}'
  module, colon, call = text.partition(':')
  if not colon:
    names = BUILT_IN[setting]
    raise errors.UserError(
      f'{where} is not one of {", ".join(names)}, nor of the form {_FORM}.'
      + errors.did_you_mean(text, names)
    )
  try:
    made = ast.parse(call.strip(), mode='eval').body
    is_call = isinstance(made, ast.Call)
    keywords = made.keywords if is_call else []
    name = ast.unparse(made.func if is_call else made)
    arguments = {k.arg: ast.literal_eval(k.value) for k in keywords}
    is_right = (
      all(part.isidentifier() for part in [name, *module.split('.')])
      and not (is_call and made.args)
      and None not in arguments
      and len(arguments) == len(keywords)
    )
  except (ValueError, SyntaxError):
    is_right = False
  if not is_right:
    raise errors.UserError(
      f'{where} must be of the form {_FORM}, each NAME once and each VALUE a'
      " literal, such as 0.5 or 'a'."
    )
  return Component(module, name, arguments)


def build(setting: str, settings: Any) -> Any:
  """Makes the correction or the personalization of resolved settings."""
  # It imports TensorFlow, for which errors in flags should not wait.
  import tff_debias

  text = getattr(settings, setting)
  if setting == 'correction':
    base = tff_debias.Correction
    built_in = {
      'none': tff_debias.NoCorrection,
      'dyn': lambda: tff_debias.Dyn(settings.alpha),
      # Every client takes all of its K steps.
      'scaf': lambda: tff_debias.Scaf(num_steps=settings.local_steps),
      'prox': lambda: tff_debias.Prox(settings.mu),
    }
  else:
    base = tff_debias.Personalization
    built_in = {
      'none': tff_debias.NoPersonalization,
      'maml': lambda: tff_debias.Maml(
        settings.maml_steps,
        settings.maml_learning_rate,
        settings.maml_first_order,
      ),
      'proto': tff_debias.Proto,
    }
  if text in built_in:
    return built_in[text]()
  component = parse(setting, text)
  where, arguments = f'--{setting}={text}', component.arguments
  found = _find_class(where, component, base)
  try:
    inspect.signature(found).bind(**arguments)
  except TypeError as e:
    raise errors.UserError(
      f'{where} has wrong arguments: {e}. The class takes'
      f' {inspect.signature(found)}.'
    ) from e
  try:
    made = found(**arguments)
  except (TypeError, ValueError) as e:
    raise errors.UserError(
      f'{where} cannot be made: {errors.first_line(e)}.'
    ) from e
  if type(made).__repr__ is object.__repr__:
    raise errors.UserError(
      f'{where} must be a dataclass, or have a __repr__ that shows its'
      ' arguments: by it a run that goes on knows its own.'
    )
  return made


def check_own(settings: Any) -> None:
  """Raises an error if a class of one's own in settings cannot be made."""
  for setting in BUILT_IN:
    if getattr(settings, setting) not in (None, *BUILT_IN[setting]):
      build(setting, settings)


def _find_class(where: str, component: Component, base: type) -> type:
  try:
    module = importlib.import_module(component.module)
  # Whatever the user's module raises while it is imported.
  except Exception as e:
    raise errors.UserError(
      f'{where}: the module {component.module} cannot be imported'
      f' ({type(e).__name__}: {errors.first_line(e)}). It must be in the'
      ' current folder, on PYTHONPATH, or installed.'
    ) from e
  found = getattr(module, component.name, None)
  if isinstance(found, type) and issubclass(found, base):
    return found
  right = [
    name
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, base) and value != base
  ]
  wrong = (
    f'the module {component.module} ({module.__file__}) has no {component.name}'
    if found is None
    else f'{component.name} is not a subclass of tff_debias.{base.__name__}'
  )
  raise errors.UserError(
    f'{where}: {wrong}.{errors.did_you_mean(component.name, right)}'
  )
