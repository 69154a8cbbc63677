import gzip
import os
import struct
import sys

import numpy as np
import pytest

from tasks.catalog import fashion_mnist
from tasks.readers import files as files_lib
from tasks.readers import tfds as tfds_lib
from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib

REAL = '/usr/share/datasets/fashion-mnist'


def write(path, array):
  header = struct.pack('>HBB', 0, 8, array.ndim)
  header += b''.join(struct.pack('>I', size) for size in array.shape)
  content = header + array.astype(np.uint8).tobytes()
  if path.suffix == '.gz':
    content = gzip.compress(content)
  path.write_bytes(content)


@pytest.fixture
def files(tmp_path):
  """A folder like Debian's, and what is in it."""
  rng = np.random.default_rng(0)
  arrays = {}
  for prefix, size in (('train', 30), ('t10k', 20)):
    arrays[f'{prefix}-images-idx3-ubyte'] = rng.integers(0, 256, (size, 28, 28))
    arrays[f'{prefix}-labels-idx1-ubyte'] = rng.permutation(size) % 10
  for name, array in arrays.items():
    write(tmp_path / f'{name}.gz', array)
  return tmp_path, arrays


def scaled(loaded, x):
  return loaded.build_model(10).get_layer('scaling')(x).numpy()


def check(loaded, arrays):
  raw = arrays['train-images-idx3-ubyte'] / 255
  for (x, y), prefix in ((loaded.train, 'train'), (loaded.test, 't10k')):
    assert x.dtype == np.uint8 and y.dtype == np.int32
    expected = (arrays[f'{prefix}-images-idx3-ubyte'] / 255 - raw.mean()) / (
      raw.std()
    )
    np.testing.assert_allclose(
      scaled(loaded, x), expected[..., None], rtol=1e-4, atol=1e-5
    )
    assert np.array_equal(y, arrays[f'{prefix}-labels-idx1-ubyte'])


def test_loads_the_files_of_a_folder(files):
  check(fashion_mnist.load(str(files[0])), files[1])


def test_loads_unpacked_files(files):
  folder, arrays = files
  for name, array in arrays.items():
    (folder / f'{name}.gz').unlink()
    write(folder / name, array)
  check(fashion_mnist.load(str(folder)), arrays)


def test_loads_debians_files_by_default(files, monkeypatch):
  monkeypatch.setattr(fashion_mnist, '_DEBIAN_DIR', str(files[0]))
  check(fashion_mnist.load(), files[1])


def test_black_is_what_images_are_padded_with(files):
  loaded = fashion_mnist.load(str(files[0]))
  white = np.full((50, 28, 28, 1), 255, np.uint8)
  augmented = loaded.augment(white, [0, 0])
  assert np.unique(augmented).tolist() == [0, 255]


@pytest.mark.parametrize(
  'name, array, match',
  [
    ('train-labels-idx1-ubyte', np.zeros(29), '29 labels and 30 images'),
    ('train-labels-idx1-ubyte', np.full(30, 10), 'labels of 0 to 9, got 10'),
    ('t10k-images-idx3-ubyte', np.zeros((20, 28, 27)), r'got \[28, 27\]'),
    ('t10k-images-idx3-ubyte', np.zeros((0, 28, 28)), '20 labels and 0 im'),
    ('t10k-images-idx3-ubyte', np.zeros(20), '00 00 08 03.*00 00 08 01'),
  ],
)
def test_a_wrong_file_is_named(files, name, array, match):
  write(files[0] / f'{name}.gz', array)
  with pytest.raises(files_lib.DataError, match=match) as e:
    fashion_mnist.load(str(files[0]))
  assert name in str(e.value)


def test_a_truncated_file_is_named(files):
  path = files[0] / 'train-images-idx3-ubyte.gz'
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(
    files_lib.DataError, match=f'{path} is a damaged gzip file'
  ):
    fashion_mnist.load(str(files[0]))


@pytest.mark.parametrize('data_dir', ['empty', 'nowhere', ''])
def test_a_missing_file_says_how_to_get_it(tmp_path, monkeypatch, data_dir):
  (tmp_path / 'empty').mkdir()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(files_lib.DataError, match='neither train-images') as e:
    fashion_mnist.load(data_dir)
  assert 'apt-get install dataset-fashion-mnist' in str(e.value)


def test_loads_from_tensorflow_datasets(monkeypatch):
  # Slow to import, for this test only.
  import tensorflow_datasets as tfds

  monkeypatch.setattr(fashion_mnist, '_DEBIAN_DIR', '/nowhere')
  monkeypatch.setattr(tfds_lib, '_check_server', lambda url: None)
  with tfds.testing.mock_data(num_examples=15):
    loaded = fashion_mnist.load()
    sets = tfds.load('fashion_mnist', split=['train', 'test'])
  for (x, y), dataset in zip((loaded.train, loaded.test), sets, strict=True):
    assert x.shape == (15, 28, 28, 1) and x.dtype == np.uint8
    assert y.shape == (15,) and y.dtype == np.int32
    examples = list(dataset.as_numpy_iterator())
    assert np.array_equal(y, [example['label'] for example in examples])
    assert np.array_equal(x, [example['image'] for example in examples])
  ready = scaled(loaded, loaded.train[0])
  np.testing.assert_allclose(ready.std(), 1, rtol=1e-4)


def test_without_any_source_it_says_how_to_get_one(monkeypatch):
  monkeypatch.setattr(fashion_mnist, '_DEBIAN_DIR', '/nowhere')
  # Makes the import fail, whatever is installed.
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(
    files_lib.DataError, match='could not provide fashion_mnist'
  ) as e:
    fashion_mnist.load()
  for part in (
    '/nowhere',
    'ModuleNotFoundError',
    'apt-get install',
    'data_dir',
  ):
    assert part in str(e.value)


@pytest.mark.skipif(
  not os.path.isdir(REAL), reason='needs apt-get install dataset-fashion-mnist'
)
def test_the_real_files():
  loaded = fashion_mnist.load()
  (train_x, train_y), (test_x, test_y) = loaded.train, loaded.test
  assert train_x.shape == (60000, 28, 28, 1)
  assert test_x.shape == (10000, 28, 28, 1)
  assert np.bincount(train_y).tolist() == [6000] * 10
  assert np.bincount(test_y).tolist() == [1000] * 10
  # The first labels as they are published: an ankle boot, two tops.
  assert train_y[:3].tolist() == [9, 0, 0]
  ready = scaled(loaded, train_x)
  np.testing.assert_allclose(ready.mean(dtype=float), 0, atol=1e-5)
  # The mean 0.2860 and deviation 0.3530 that everyone normalizes with.
  black = ready.min()
  assert black == pytest.approx(-0.2860 / 0.3530, abs=1e-3)


def test_network_and_defaults(files):
  loaded = fashion_mnist.load(str(files[0]))
  assert loaded.num_classes == 10
  model = loaded.build_model(5)
  assert model(loaded.train[0][:2]).shape == (2, 5)
  settings = settings_lib.Settings(task='fashion_mnist', personalization='maml')
  resolved = vars(experiment_lib.resolve(settings))
  unset = {k for k, v in resolved.items() if v is None}
  assert unset == {
    *('data_dir', 'concentration', 'mu', 'tested_personalization'),
  }
