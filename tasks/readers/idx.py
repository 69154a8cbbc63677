"""Reads IDX files, the format of MNIST and its successors.

A file is the bytes 0, 0, TYPE, RANK, then the dimensions as big-endian 32-bit
integers, then the elements, last dimension first.
"""

import gzip
import os
import zlib

import numpy as np

from tasks.readers import files

_UBYTE = 8


def read(path: str | os.PathLike[str], rank: int) -> np.ndarray:
  """Reads a file of unsigned bytes, which may be compressed by gzip.

  Args:
    path: The file. Whether it is compressed is seen from its contents.
    rank: The number of dimensions that it must have.

  Returns:
    uint8 with the dimensions of the file, read-only.

  Raises:
    DataError: If the file cannot be read or is not such a file: what was found
      and what is right.
  """
  try:
    with open(path, 'rb') as file:
      data = file.read()
  except OSError as e:
    raise files.DataError(f'{path} cannot be read: {e.strerror}.') from e
  if data[:2] == b'\x1f\x8b':
    try:
      data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
      raise files.DataError(f'{path} is a damaged gzip file: {e}.') from e
  magic = bytes([0, 0, _UBYTE, rank])
  if data[:4] != magic:
    raise files.DataError(
      f'{path} is not an IDX file of {rank}-dimensional bytes: it must begin'
      f' with {magic.hex(" ")}, but it begins with {data[:4].hex(" ")!r}.'
    )
  start = 4 + 4 * rank
  if len(data) < start:
    raise files.DataError(
      f'{path} is truncated: its header must have {start} bytes, got'
      f' {len(data)}.'
    )
  shape = tuple(np.frombuffer(data, '>u4', rank, 4).tolist())
  expected = start + int(np.prod(shape, dtype=object))
  if len(data) != expected:
    raise files.DataError(
      f'{path} is {"truncated" if len(data) < expected else "too long"}: by its'
      f' dimensions {list(shape)} it must have {expected} bytes, got'
      f' {len(data)}.'
    )
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
