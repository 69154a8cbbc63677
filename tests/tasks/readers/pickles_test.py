import collections
import os
import pickle

import numpy as np
import pytest

from tasks.readers import files
from tasks.readers import pickles

_CONTENT = {
  'data': np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
  'labels': [0, 63],
  'numbers': [np.int64(3), np.float32(0.5)],
  'names': collections.OrderedDict(n01=[1, 2], n02=(3, b'\xff')),
}


class _Evil:
  """Makes a folder when it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_round_trip(tmp_path, protocol):
  path = tmp_path / 'a.pickle'
  path.write_bytes(pickle.dumps(_CONTENT, protocol))
  content = pickles.read(path)
  assert content.keys() == _CONTENT.keys()
  assert content['data'].dtype == np.uint8
  assert np.array_equal(content['data'], _CONTENT['data'])
  for name in ('labels', 'numbers', 'names'):
    assert content[name] == _CONTENT[name]


def test_reads_what_numpy_2_writes(tmp_path):
  path = tmp_path / 'a.pickle'
  written = pickle.dumps(_CONTENT, 2).replace(
    b'numpy.core.multiarray', b'numpy._core.multiarray'
  )
  path.write_bytes(written)
  assert np.array_equal(pickles.read(path)['data'], _CONTENT['data'])


def test_reads_what_python_2_writes(tmp_path):
  # pickle.dumps({'data': numpy.array([200, 1], 'uint8')}, 2), Python 2's str.
  written = (
    b'\x80\x02}q\x00U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02'
    b'cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02\x85cnumpy\n'
    b'dtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ'
    b'\xff\xff\xff\xffK\x00tb\x89U\x02\xc8\x01tbs.'
  )
  path = tmp_path / 'a.pickle'
  path.write_bytes(written)
  assert pickles.read(path)['data'].tolist() == [200, 1]


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_runs_nothing(tmp_path, protocol):
  path, made = tmp_path / 'a.pickle', tmp_path / 'made'
  evil = {'data': [_Evil(made)]}
  path.write_bytes(pickle.dumps(evil, protocol))
  with pytest.raises(files.DataError, match='mkdir is not allowed') as e:
    pickles.read(path)
  assert str(path) in str(e.value)
  assert not made.exists()
  pickle.loads(path.read_bytes())
  assert made.exists()


def test_a_dotted_name_reaches_nothing(tmp_path):
  path = tmp_path / 'a.pickle'
  # From protocol 4 on, a name with dots is followed through attributes.
  path.write_bytes(b'\x80\x04\x8c\x05numpy\x8c\x0dcore.sys.exit\x93)R.')
  with pytest.raises(files.DataError, match='is not allowed'):
    pickles.read(path)


def test_a_damaged_file_is_named(tmp_path):
  path = tmp_path / 'a.pickle'
  whole = pickle.dumps(_CONTENT, 2)
  for content in (b'', b'<!DOCTYPE html>', *(whole[:i] for i in range(1, 99))):
    path.write_bytes(content)
    with pytest.raises(files.DataError, match=f'{path} is no pickle of arrays'):
      pickles.read(path)
  with pytest.raises(files.DataError, match='cannot be read: No such file'):
    pickles.read(tmp_path / 'nothing')
