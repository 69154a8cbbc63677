"""Lists the tasks, a module each; the other modules here serve them.

The module of a task has two functions:

* `defaults` takes the names of the correction and the personalization (the
  flags `--correction` and `--personalization`). It gives a dict of the number
  of `rounds`, and a value for each setting that need not be given. It needs no
  data.
* `load` takes the folder of the data, `data_dir` (a string, or `None`), and
  gives the `task.Task`. It raises a `UserError` if the data are missing (the
  message says how to get them) or wrong (the message says what would be right).
"""

import importlib
import pkgutil
import types

_SHARED = frozenset({'images', 'networks', 'published', 'task'})

#: The names of the tasks. A new module in this folder is a new task.
TASKS = tuple(
  module.name
  for module in pkgutil.iter_modules(__path__)
  if module.name not in _SHARED
)


def module_of(name: str) -> types.ModuleType:
  """The module of a task, imported now: it needs TensorFlow."""
  return importlib.import_module(f'{__name__}.{name}')
