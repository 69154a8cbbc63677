import errno
import functools
import lzma
import shutil
import sqlite3
import urllib.request

import numpy as np
import pytest
import tensorflow_federated as tff
import tff_files

from tasks.readers import files
from tasks.readers import tff_data

_NAME = 'emnist_all.sqlite'
_SPLITS = tff_files.writers(num_writers=3)

load = functools.partial(
  tff_data.load,
  functools.partial(tff.simulation.datasets.emnist.load_data, False),
  _NAME,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  def urlopen(*unused_args):
    raise OSError('no network here')

  monkeypatch.setattr(urllib.request, 'urlopen', urlopen)


def check(loaded):
  for data, examples in zip(loaded, _SPLITS.values(), strict=True):
    assert data.client_ids == list(examples)
    for client_id, expected in examples.items():
      dataset = data.create_tf_dataset_for_client(client_id)
      for one, other in zip(dataset.as_numpy_iterator(), expected, strict=True):
        assert np.array_equal(one['pixels'], other['pixels'])
        assert one['label'] == other['label']


def test_loads_the_database(tmp_path):
  tff_files.write(tmp_path / _NAME, _SPLITS)
  check(load(str(tmp_path)))


def test_unpacks_what_the_server_has(tmp_path):
  tff_files.write(tmp_path / 'a', _SPLITS)
  packed = lzma.compress((tmp_path / 'a').read_bytes())
  path = tmp_path / f'{_NAME}.lzma'
  for content in (packed[:-9], packed[:1000], b'', b'<!DOCTYPE html>'):
    path.write_bytes(content)
    with pytest.raises(
      files.DataError, match=f'{path} is truncated or damaged'
    ):
      load(str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == {'a', path.name}
  path.write_bytes(packed)
  check(load(str(tmp_path)))
  path.unlink()
  check(load(str(tmp_path)))


def test_a_folder_is_relative_to_where_one_is(tmp_path, monkeypatch):
  tff_files.write(tmp_path / _NAME, _SPLITS)
  monkeypatch.chdir(tmp_path)
  loaded = load('')
  # The worker is elsewhere.
  monkeypatch.chdir('/')
  check(loaded)


def test_loads_tffs_own_copy_by_default(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / '.tff').mkdir()
  tff_files.write(tmp_path / '.tff' / _NAME, _SPLITS)
  check(load(None))


def test_a_truncated_database_is_named(tmp_path):
  path = tmp_path / _NAME
  tff_files.write(path, _SPLITS)
  whole = path.read_bytes()
  path.write_bytes(whole[:-1])
  with pytest.raises(files.DataError, match='is truncated') as e:
    load(str(tmp_path))
  for part in (path, f'must have {len(whole)} bytes', f'got {len(whole) - 1}'):
    assert str(part) in str(e.value)
  for content in (b'', whole[:99], b'<!DOCTYPE html>' * 99):
    path.write_bytes(content)
    with pytest.raises(files.DataError, match='is no SQLite database') as e:
      load(str(tmp_path))
    assert f'has {len(content)} bytes' in str(e.value)
  # A page in the middle.
  path.write_bytes(b'\x77'.join([whole[:100], whole[4096:] + bytes(4000)]))
  with pytest.raises(files.DataError, match=f'{path} is damaged'):
    load(str(tmp_path))


def test_another_database_is_named(tmp_path):
  path = tmp_path / _NAME
  with sqlite3.connect(path) as connection:
    connection.execute('CREATE TABLE other (name TEXT);')
  with pytest.raises(files.DataError, match='is damaged, or another database'):
    load(str(tmp_path))
  path.unlink()
  tff_files.write(path, {'train': {}, 'test': {}})
  with pytest.raises(files.DataError, match='is damaged, or another database'):
    load(str(tmp_path))


def test_a_missing_file_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  for folder, said in ((str(tmp_path), 'is neither'), (None, 'no network')):
    with pytest.raises(files.DataError, match=said) as e:
      load(folder)
    for part in (_NAME, '.lzma', 'data_dir', 'TFF downloads it'):
      assert part in str(e.value)


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
  tff_files.write(tmp_path / 'a', _SPLITS)
  packed = lzma.compress((tmp_path / 'a').read_bytes())
  (tmp_path / f'{_NAME}.lzma').write_bytes(packed)

  def copy(source, target, length):
    target.write(b'some')
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(shutil, 'copyfileobj', copy)
  with pytest.raises(files.DataError, match='be unpacked .* No space left'):
    load(str(tmp_path))
  assert {p.name for p in tmp_path.iterdir()} == {'a', f'{_NAME}.lzma'}
