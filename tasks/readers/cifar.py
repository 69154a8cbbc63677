"""Reads CIFAR-10 and CIFAR-100 from their original archives, binary version.

A file is a sequence of records. A record is one or two labels, a byte each, and
an image of 32×32 with a byte for each pixel: all red, then green, then blue.
"""

import dataclasses
import gzip
import io
import os
import tarfile
import zlib

from absl import logging
import numpy as np

from tasks.readers import files
from tasks.readers import tfds

_SHAPE = (3, 32, 32)
_URL = 'https://www.cs.toronto.edu/~kriz/cifar.html'


@dataclasses.dataclass(frozen=True)
class Variant:
  """One of the two data sets.

  `md5` is the published one of the archive, and `folder` is in it. `train` and
  `test` are the numbers of records by file. The last label of a record is its
  class.
  """

  title: str
  tfds_name: str
  archive: str
  md5: str
  folder: str
  train: dict[str, int]
  test: dict[str, int]
  num_labels: int
  num_classes: int


def load(
  variant: Variant, data_dir: str | None
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Loads the training and the test set: images and classes of each.

  Images are uint8 `[examples, 32, 32, 3]`, classes integers. `data_dir` is a
  folder with the archive, with its folder, or with the files; by default
  tensorflow-datasets provides the data.
  """
  if data_dir is None:
    return tfds.load(variant.tfds_name, _how_to_get(variant))
  contents = _contents(variant, data_dir)
  sets = []
  for sizes in (variant.train, variant.test):
    parts = [_decode(variant, n, *contents[name]) for name, n in sizes.items()]
    sets.append(tuple(map(np.concatenate, zip(*parts, strict=True))))
  return sets


def _contents(variant: Variant, data_dir: str) -> dict[str, tuple[str, bytes]]:
  """For each file where it is and what is in it."""
  names = [*variant.train, *variant.test]
  for folder in (data_dir, os.path.join(data_dir, variant.folder)):
    paths = {name: os.path.join(folder, name) for name in names}
    found = [name for name in names if os.path.isfile(paths[name])]
    if len(found) == len(names):
      logging.warning(
        'The files in %s may or may not be the published ones of %s: a checksum'
        ' is published for %s only, which can be read as it is.',
        *(folder, variant.title, variant.archive),
      )
      return {name: (paths[name], files.read(paths[name])) for name in names}
    if found:
      missing = [name for name in names if name not in found]
      raise files.DataError(
        f'{folder} has {", ".join(found)}, but not {", ".join(missing)}.'
        f' {_how_to_get(variant)}'
      )
  archive = os.path.join(data_dir, variant.archive)
  if not os.path.isfile(archive):
    raise files.DataError(
      f'There is neither {variant.archive} nor {variant.folder} nor {names[0]}'
      f' in {data_dir}. {_how_to_get(variant)}'
    )
  packed = files.read(archive)
  files.compare_digest(variant.title, archive, packed, variant.md5)
  try:
    # The whole archive: gzip's checksum is at its end.
    content = io.BytesIO(gzip.decompress(packed))
    with tarfile.open(fileobj=content) as tar:
      members = {n: tar.getmember(f'{variant.folder}/{n}') for n in names}
      for name, member in members.items():
        # Not a folder, a named pipe or a link, perhaps to itself.
        if not member.isreg():
          raise files.DataError(
            f'{name} in {archive} is not a file. {_how_to_get(variant)}'
          )
      return {
        name: (f'{name} in {archive}', tar.extractfile(member).read())
        for name, member in members.items()
      }
  except KeyError as e:
    raise files.DataError(
      f'{archive} is another archive: {e.args[0]}. {_how_to_get(variant)}'
    ) from e
  except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
    raise files.DataError(
      f'{archive} is truncated or damaged ({e}): get it again.'
    ) from e


def _decode(
  variant: Variant, num_records: int, place: str, content: bytes
) -> tuple[np.ndarray, np.ndarray]:
  """The images `[n, 32, 32, 3]` and the classes `[n]` of a file, uint8."""
  record = variant.num_labels + int(np.prod(_SHAPE))
  files.check_length(
    place,
    content,
    num_records * record,
    f'for {num_records} records of {record} bytes',
  )
  records = np.frombuffer(content, np.uint8).reshape(num_records, record)
  y = records[:, variant.num_labels - 1]
  if y.max() >= variant.num_classes:
    raise files.DataError(
      f'{place} must have classes of 0 to {variant.num_classes - 1}, got'
      f' {y.max()} in record {y.argmax()}.'
    )
  x = records[:, variant.num_labels :].reshape(-1, *_SHAPE)
  return x.transpose(0, 2, 3, 1), y


def _how_to_get(variant: Variant) -> str:
  return (
    f'To get {variant.title}, either put {variant.archive} (the binary version)'
    f' from {_URL}, unpacked or not, into a folder and name that as data_dir;'
    ' or, with an internet connection, leave data_dir out, and'
    ' tensorflow-datasets downloads it.'
  )
