"""Reads pickles of arrays that come from elsewhere, and runs nothing in them.

A pickle may name any function of any module, to be called when it is read.
Here only those are allowed that make arrays and plain containers.
"""

import os
import pickle
from typing import Any

from tasks.readers import files

# Named as NumPy 1 or as NumPy 2 does, and as it is here.
_NUMPY = {
  f'numpy.{core}.{module}.{name}': (f'numpy.core.{module}', name)
  for core in ('core', '_core')
  for module, name in (
    ('multiarray', '_reconstruct'),
    ('multiarray', 'scalar'),
    ('numeric', '_frombuffer'),
  )
}
_ALLOWED = _NUMPY | {
  'numpy.ndarray': ('numpy', 'ndarray'),
  'numpy.dtype': ('numpy', 'dtype'),
  'collections.OrderedDict': ('collections', 'OrderedDict'),
  # How Python 3 writes bytes for Python 2.
  '_codecs.encode': ('_codecs', 'encode'),
}


def read(path: str | os.PathLike[str]) -> Any:
  """Reads a pickle of arrays, numbers and strings in plain containers.

  Args:
    path: The file, written by Python 3 or by Python 2 (whose strings are read
      as Latin-1).

  Returns:
    What is in it.

  Raises:
    DataError: If the file cannot be read, is damaged, or holds something else,
      of which nothing has been run.
  """
  try:
    with open(path, 'rb') as file:
      return _Unpickler(file, encoding='latin1').load()
  except OSError as e:
    raise files.DataError(f'{path} cannot be read: {e.strerror}.') from e
  # What a damaged pickle raises depends on where it is damaged.
  except Exception as e:
    raise files.DataError(
      f'{path} is no pickle of arrays, or it is truncated or damaged'
      f' ({type(e).__name__}: {e}).'
    ) from e


class _Unpickler(pickle.Unpickler):
  """Finds what is allowed, and refuses the rest."""

  def find_class(self, module: str, name: str) -> Any:
    """See base class."""
    if f'{module}.{name}' not in _ALLOWED:
      raise pickle.UnpicklingError(f'{module}.{name} is not allowed in it')
    return super().find_class(*_ALLOWED[f'{module}.{name}'])
