"""The tasks, a module each, and what they share."""

import pkgutil

_SHARED = frozenset({'images', 'networks', 'published', 'task'})

#: The names of the tasks: a module added here is one more.
TASKS = tuple(
  module.name
  for module in pkgutil.iter_modules(__path__)
  if module.name not in _SHARED
)
