"""Makes the correction and the personalization that the settings name.

A name is either a built-in one, such as `dyn`, or the text
`MODULE:CLASS(NAME=VALUE, ...)`, for a class of one's own. The text is parsed,
never executed.
"""

import ast
from collections.abc import Mapping
import dataclasses
import importlib
import inspect
import types
from typing import Any

from tasks.runs import errors

_FORM = 'MODULE:CLASS or MODULE:CLASS(NAME=VALUE, ...)'


class ComponentError(ValueError):
  """A class cannot be found or used, and why."""


@dataclasses.dataclass(frozen=True)
class Component:
  """A class, and the keyword arguments that make an object of it.

  Attributes:
    module: The module of the class.
    name: The name of the class.
    arguments: The arguments. For a built-in class a text is the name of the
      setting that holds the value.
  """

  module: str
  name: str
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    """The text that `parse` takes, the same for all ways to write it."""
    listed = ', '.join(f'{k}={v!r}' for k, v in self.arguments.items())
    return f'{self.module}:{self.name}' + (f'({listed})' if listed else '')


#: The classes that have a short name, by the setting that names them.
BUILT_IN = types.MappingProxyType(
  {
    'correction': {
      'none': Component('tff_debias', 'NoCorrection'),
      'dyn': Component('tff_debias', 'Dyn', {'alpha': 'alpha'}),
      # Every client takes all of its K steps.
      'scaf': Component('tff_debias', 'Scaf', {'equal_steps': True}),
    },
    'personalization': {
      'none': Component('tff_debias', 'NoPersonalization'),
      'maml': Component(
        'tff_debias',
        'Maml',
        {
          'num_steps': 'maml_steps',
          'learning_rate': 'maml_learning_rate',
          'first_order': 'maml_first_order',
        },
      ),
      'proto': Component('tff_debias', 'Proto'),
    },
  }
)


def parse(setting: str, text: str) -> Component:
  """Reads `MODULE:CLASS(NAME=VALUE, ...)`; imports nothing.

  Args:
    setting: `correction` or `personalization`, for the message of an error.
    text: The text. Values are literals of Python, such as `0.5` or `'a'`.

  Returns:
    The component.

  Raises:
    ComponentError: If the text is of another form.
  """
  where = f'--{setting}={text}'
  module, colon, call = text.partition(':')
  if not colon:
    names = BUILT_IN[setting]
    raise ComponentError(
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
    raise ComponentError(
      f'{where} must be of the form {_FORM}, each NAME once and each VALUE a'
      " literal, such as 0.5 or 'a'."
    )
  return Component(module, name, arguments)


def build(setting: str, settings: Any, base: type) -> Any:
  """Makes the object that a setting names.

  Args:
    setting: `correction` or `personalization`.
    settings: The resolved `settings.Settings`.
    base: The class that the object's class must extend.

  Returns:
    The object.

  Raises:
    ComponentError: If there is no such module or class, or it is of another
      kind or does not take the arguments.
  """
  text = getattr(settings, setting)
  component = BUILT_IN[setting].get(text)
  if component is not None:
    arguments = {
      name: getattr(settings, value) if isinstance(value, str) else value
      for name, value in component.arguments.items()
    }
  else:
    component = parse(setting, text)
    arguments = component.arguments
  where = f'--{setting}={text}'
  found = _find_class(where, component, base)
  try:
    inspect.signature(found).bind(**arguments)
  except TypeError as e:
    raise ComponentError(
      f'{where} has wrong arguments: {e}. The class takes'
      f' {inspect.signature(found)}.'
    ) from e
  try:
    made = found(**arguments)
  except (TypeError, ValueError) as e:
    raise ComponentError(
      f'{where} cannot be made: {errors.first_line(e)}.'
    ) from e
  if type(made).__repr__ is object.__repr__:
    raise ComponentError(
      f'{where} must be a dataclass, or have a __repr__ that shows its'
      ' arguments: by it a run that goes on knows its own.'
    )
  return made


def _find_class(where: str, component: Component, base: type) -> type:
  try:
    module = importlib.import_module(component.module)
  # Whatever the user's module raises while it is imported.
  except Exception as e:
    raise ComponentError(
      f'{where}: the module {component.module} cannot be imported'
      f' ({type(e).__name__}: {errors.first_line(e)}). It must be in the'
      ' current folder, on PYTHONPATH, or installed.'
    ) from e
  found = getattr(module, component.name, None)
  right = [
    name
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, base) and value != base
  ]
  if found is None:
    raise ComponentError(
      f'{where}: the module {component.module} ({module.__file__}) has no'
      f' {component.name}.{errors.did_you_mean(component.name, right)}'
    )
  if not isinstance(found, type) or not issubclass(found, base):
    raise ComponentError(
      f'{where}: {component.name} is not a subclass of'
      f' tff_debias.{base.__name__}.'
      f'{errors.did_you_mean(component.name, right)}'
    )
  return found
