"""Reads the examples of a device, a file .npz. It imports no TensorFlow."""

import zipfile

import numpy as np

from tasks.runs import errors


def read(path: str) -> dict[str, np.ndarray]:
  """The arrays of a file, of which `x` and `y` must be there.

  Raises:
    UserError: If it is not such a file.
  """
  try:
    with open(path, 'rb') as file:
      if not zipfile.is_zipfile(file):
        raise ValueError('it is no .npz file')
    with np.load(path) as arrays:
      if not {'x', 'y'}.issubset(arrays.files):
        raise ValueError(f'it has {", ".join(arrays.files)}')
      return dict(arrays)
  except (OSError, ValueError, zipfile.BadZipFile) as e:
    raise errors.UserError(
      f'{path} must be a file .npz with the arrays x and y, as'
      f' numpy.savez(path, x=x, y=y) writes it: {e}.'
    ) from e
