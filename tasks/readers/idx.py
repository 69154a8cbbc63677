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


def read(
  path: str | os.PathLike[str], rank: int, published: tuple[str, str]
) -> np.ndarray:
  """Reads a file of unsigned bytes, which may be compressed by gzip.

  `rank` is the number of dimensions that it must have. `published` is the name
  of a data set and the digest of its uncompressed file; a warning says if this
  is another one. The array is read-only.
  """
  data = files.read(path)
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
  files.check_length(path, data, expected, f'by its dimensions {list(shape)}')
  title, digest = published
  files.compare_digest(title, path, data, digest)
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
