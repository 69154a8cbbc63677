"""Loads TFF's federated data sets, from the user's folder or TFF's server."""

from collections.abc import Callable
import contextlib
import lzma
import os
import shutil
import struct

import tensorflow_federated as tff

from tasks.readers import files

_ClientData = tff.simulation.datasets.ClientData
_SERVER = 'https://storage.googleapis.com/tff-datasets-public'
# Where TFF puts what it downloads.
_CACHE_DIR = os.path.join('~', '.tff')


def load(
  load_data: Callable[..., tuple[_ClientData, _ClientData]],
  file_name: str,
  data_dir: str | None,
) -> tuple[_ClientData, _ClientData]:
  """Loads the training and test data of users; examples stay on the disk.

  `load_data` is TFF's function, which takes `cache_dir` and opens the SQLite
  database `file_name`. `data_dir` is the folder of the database, or of the
  compressed one as on TFF's server, which is unpacked there. By default it is
  TFF's cache, to which TFF downloads the database when it is first used.
  """
  folder = os.path.abspath(
    os.path.expanduser(_CACHE_DIR if data_dir is None else data_dir)
  )
  path = os.path.join(folder, file_name)
  how_to_get = (
    f'To get it, either put {_SERVER}/{file_name}.lzma, unpacked or not, into a'
    ' folder and name that as data_dir; or, with an internet connection, leave'
    ' data_dir out, and TFF downloads it.'
  )
  if not os.path.isfile(path) and os.path.isfile(f'{path}.lzma'):
    _unpack(f'{path}.lzma', path)
  if data_dir is not None and not os.path.isfile(path):
    raise files.DataError(
      f'There is neither {file_name} nor {file_name}.lzma in {data_dir}.'
      f' {how_to_get}'
    )
  is_there = os.path.isfile(path)
  if is_there:
    _check_size(path)
  try:
    return load_data(cache_dir=folder)
  # The database, the server, the network and the disk may each be the reason.
  except Exception as e:
    reason = f'({type(e).__name__}: {e})'
    message = f'TFF could not provide {file_name} {reason}.'
    if is_there:
      message = f'{path} is damaged, or another database {reason}: remove it.'
    raise files.DataError(f'{message} {how_to_get}') from e


def _unpack(source: str, path: str) -> None:
  # Under another name until it is complete, in case the unpacking is stopped.
  unfinished = f'{path}.{os.getpid()}'
  try:
    with lzma.open(source) as packed, open(unfinished, 'wb') as unpacked:
      shutil.copyfileobj(packed, unpacked, 2**20)
    os.replace(unfinished, path)
  except (lzma.LZMAError, EOFError) as e:
    raise files.DataError(
      f'{source} is truncated or damaged ({e}): get it again.'
    ) from e
  except OSError as e:
    raise files.DataError(
      f'{source} cannot be unpacked to {path}: {e.strerror}.'
    ) from e
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(unfinished)


def _check_size(path: str) -> None:
  """Finds missing pages now; SQLite finds one only when it reads it."""
  size = os.path.getsize(path)
  with open(path, 'rb') as file:
    header = file.read(100)
  if len(header) < 100 or header[:16] != b'SQLite format 3\0':
    raise files.DataError(
      f'{path} is no SQLite database: it must begin with the 100 bytes of its'
      f' header, but it has {size} bytes, the first {header[:16]!r}.'
    )
  page_size, pages = struct.unpack('>16xH10xI', header[:32])
  expected = (page_size if page_size > 1 else 2**16) * pages
  if size < expected:
    raise files.DataError(
      f'{path} is truncated: by its header it must have {expected} bytes, got'
      f' {size}. Remove it and get it again.'
    )
