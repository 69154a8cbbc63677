"""Reads the bytes of a file, and names the error of data that are wrong."""

import hashlib
import os

from absl import logging

from tasks.runs import errors


class DataError(errors.UserError):
  """The data of a task are missing or damaged: which, and what to do."""


def read(path: str | os.PathLike[str]) -> bytes:
  """The bytes of a whole file."""
  try:
    with open(path, 'rb') as file:
      return file.read()
  except OSError as e:
    raise DataError(f'{path} cannot be read: {e.strerror}.') from e


def check_length(
  place: str | os.PathLike[str], content: bytes, expected: int, reason: str
) -> None:
  """Raises a `DataError` if a file is too short or too long.

  `place` is the file and `reason` why it must have that length, for the
  message.
  """
  if len(content) != expected:
    kind = 'truncated' if len(content) < expected else 'too long'
    raise DataError(
      f'{place} is {kind}: {reason} it must have {expected} bytes, got'
      f' {len(content)}.'
    )


def compare_digest(
  title: str, place: str | os.PathLike[str], content: bytes, digest: str
) -> None:
  """Warns if a file does not have the published SHA-256 or MD5."""
  kind = 'md5' if len(digest) == 32 else 'sha256'
  if hashlib.new(kind, content, usedforsecurity=False).hexdigest() != digest:
    logging.warning('%s is not the published file of %s.', place, title)
