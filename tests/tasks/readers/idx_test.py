import gzip
import hashlib
import struct

import numpy as np
import pytest

from tasks.readers import files
from tasks.readers import idx


def encode(array, type_code=8):
  """The IDX bytes of an array, written by the format's definition."""
  header = struct.pack('>HBB', 0, type_code, array.ndim)
  header += b''.join(struct.pack('>I', size) for size in array.shape)
  return header + array.astype(np.uint8).tobytes()


ARRAY = np.arange(2 * 3 * 4).reshape(2, 3, 4) * 10
BYTES = encode(ARRAY)
ZIPPED = gzip.compress(BYTES, mtime=0)
PUBLISHED = ('MNIST', hashlib.sha256(BYTES).hexdigest())


@pytest.mark.parametrize('content', [BYTES, ZIPPED])
def test_round_trip(tmp_path, content):
  path = tmp_path / 'images'
  path.write_bytes(content)
  array = idx.read(path, 3, PUBLISHED)
  assert array.dtype == np.uint8
  assert np.array_equal(array, ARRAY)


def test_no_elements(tmp_path):
  path = tmp_path / 'labels'
  path.write_bytes(encode(np.zeros(0)))
  assert idx.read(path, 1, PUBLISHED).shape == (0,)


@pytest.mark.parametrize(
  'content, match',
  [
    (b'', "must begin with 00 00 08 03, but it begins with ''"),
    (encode(ARRAY[0]), "begins with '00 00 08 02'"),
    (encode(ARRAY, type_code=0x0D), "begins with '00 00 0d 03'"),
    (b'<!DOCTYPE html>', "begins with '3c 21 44 4f'"),
    (BYTES[:12], 'is truncated: its header must have 16 bytes, got 12'),
    (BYTES[:-1], r'truncated: .* \[2, 3, 4\] it must have 40 bytes, got 39'),
    (BYTES + b'x', r'too long: .* \[2, 3, 4\] it must have 40 bytes, got 41'),
    (BYTES[:4] + b'\xff' * 12 + BYTES[16:], 'truncated: .* 4294967295'),
    (ZIPPED[:-9], 'damaged gzip'),
    (ZIPPED[:-5] + b'x' + ZIPPED[-4:], 'damaged gzip'),
    (ZIPPED[:12] + b'\xff\xff' + ZIPPED[14:], 'damaged gzip'),
    (ZIPPED[:5], 'damaged gzip'),
    (gzip.compress(BYTES[:-1], mtime=0), 'truncated'),
  ],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path, content, match):
  path = tmp_path / 'images'
  path.write_bytes(content)
  with pytest.raises(files.DataError, match=match) as e:
    idx.read(path, 3, PUBLISHED)
  assert str(path) in str(e.value)


def test_an_unreadable_file_says_why(tmp_path):
  with pytest.raises(files.DataError, match='nothing cannot be read: No such'):
    idx.read(tmp_path / 'nothing', 1, PUBLISHED)
  with pytest.raises(files.DataError, match='cannot be read: Is a directory'):
    idx.read(tmp_path, 1, PUBLISHED)


@pytest.mark.parametrize('content', [BYTES, ZIPPED])
def test_says_which_file_is_not_the_published_one(tmp_path, caplog, content):
  path = tmp_path / 'images'
  path.write_bytes(content)
  title, digest = PUBLISHED
  idx.read(path, 3, (title, digest))
  assert not caplog.messages
  idx.read(path, 3, (title, digest[::-1]))
  assert caplog.messages == [f'{path} is not the published file of MNIST.']
