"""Lists the tasks, a module each; the other modules here serve them.

The module of a task has a function `load`. It takes the folder of the data,
`data_dir` (a string, or `None`), and gives the `task.Task`. It raises a
`tasks.readers.files.DataError` if the data are missing (the message says how to
get them) or damaged (the message says where).
"""

import pkgutil

_SHARED = frozenset({'images', 'networks', 'published', 'task'})

#: The names of the tasks. A new module in this folder is a new task.
TASKS = tuple(
  module.name
  for module in pkgutil.iter_modules(__path__)
  if module.name not in _SHARED
)
