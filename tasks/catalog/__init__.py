"""Lists the tasks, a module each; the other modules here serve them."""

import pkgutil

_SHARED = frozenset({'images', 'networks', 'published', 'task'})

#: The names of the tasks. A new module in this folder is a new task.
TASKS = tuple(
  module.name
  for module in pkgutil.iter_modules(__path__)
  if module.name not in _SHARED
)
