"""Reads pickles of arrays without the danger of running other people's code.

A pickle may name any function of any module, which is called when the pickle is
read. Here only functions that make arrays and plain containers are allowed.
"""

import io
import os
import pickle
from typing import Any

from tasks.readers import files

# The names in NumPy 1 and NumPy 2, and the module and name in this NumPy.
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

  It may be of Python 2, whose strings are read as Latin-1. No function of other
  objects is called.
  """
  content = io.BytesIO(files.read(path))
  try:
    return _Unpickler(content, encoding='latin1').load()
  # The kind of the exception depends on where the pickle is damaged.
  except Exception as e:
    raise files.DataError(
      f'{path} is no pickle of arrays, or it is truncated or damaged'
      f' ({type(e).__name__}: {e}).'
    ) from e


class _Unpickler(pickle.Unpickler):
  """Finds the allowed functions and refuses all others."""

  def find_class(self, module: str, name: str) -> Any:
    """See base class."""
    if f'{module}.{name}' not in _ALLOWED:
      raise pickle.UnpicklingError(f'{module}.{name} is not allowed in it')
    return super().find_class(*_ALLOWED[f'{module}.{name}'])
