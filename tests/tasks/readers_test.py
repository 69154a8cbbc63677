import functools
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow_federated as tff
import tff_files

from tasks import readers
from tasks.runs import errors

load_images = functools.partial(readers.load_images, 'cifar10', (4, 5, 3), 10)
load_users = functools.partial(
  readers.load_users,
  functools.partial(tff.simulation.datasets.emnist.load_data, False),
  'emnist_all',
)


@pytest.fixture(autouse=True)
def asked(monkeypatch):
  """The servers that were asked; there is no network."""
  urls = []

  def urlopen(request, timeout=None):
    urls.append(getattr(request, 'full_url', request))
    raise urllib.error.URLError('no network here')

  monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
  return urls


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    'x_train': rng.integers(0, 256, (20, 4, 5, 3), np.uint8),
    'y_train': rng.integers(0, 10, 20),
    'x_test': rng.integers(0, 256, (7, 4, 5, 3), np.uint8),
    'y_test': rng.integers(0, 10, 7, np.uint8),
  }


def check(loaded, arrays):
  for (x, y), split in zip(loaded, ('train', 'test'), strict=True):
    assert x.dtype == np.uint8 and y.dtype == np.int32
    np.testing.assert_array_equal(x, arrays[f'x_{split}'])
    np.testing.assert_array_equal(y, arrays[f'y_{split}'])


def test_images_are_read_as_keras_has_them(arrays, tmp_path):
  columns = {name: arrays[name][:, None] for name in ('y_train', 'y_test')}
  for written in (arrays, arrays | columns):
    np.savez(tmp_path / 'cifar10.npz', **written)
    check(load_images(str(tmp_path)), arrays)
  for name in ('x_train', 'x_test'):
    arrays[name] = arrays[name][..., :1]
  gray = {name: a[..., 0] for name, a in arrays.items() if a.ndim == 4}
  for written in (arrays, arrays | gray):
    np.savez_compressed(tmp_path / 'gray.npz', **written)
    check(readers.load_images('gray', (4, 5, 1), 10, str(tmp_path)), arrays)


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda a: a.pop('y_test'), 'y_test is not a file in the archive'),
    (lambda a: a.update(x_test=a['x_test'] / 255), 'x_test is float64'),
    (lambda a: a.update(x_test=a['x_test'][:0]), r'uint8 \[0, 4, 5, 3\]'),
    (lambda a: a.update(x_train=a['x_train'][..., 0]), r'uint8 \[20, 4, 5\]'),
    (
      lambda a: a.update(x_train=a['x_train'].transpose(0, 3, 1, 2)),
      r'x_train is uint8 \[20, 3, 4, 5\]',
    ),
    (lambda a: a.update(y_test=a['y_train']), r'int64 \[20\] for 7 images'),
    (lambda a: a.update(y_test=np.eye(10)[a['y_test']]), r'float64 \[7, 10\]'),
    (lambda a: a['y_train'].__setitem__(3, 10), 'y_train has the label 10'),
    (lambda a: a['y_train'].__setitem__(3, -1), 'y_train has the label -1'),
    (lambda a: a.update(y_test=np.array([{}])), 'Object arrays cannot be load'),
  ],
)
def test_wrong_images_are_named_with_what_is_right(
  arrays, tmp_path, change, said
):
  change(arrays)
  path = tmp_path / 'cifar10.npz'
  np.savez(path, **arrays)
  with pytest.raises(errors.UserError, match=said) as e:
    load_images(str(tmp_path))
  for part in (path, "uint8 ['n', 4, 5, 3]", 'integers [n] from 0 to 9'):
    assert str(part) in str(e.value)


def test_missing_and_damaged_images_are_named(arrays, tmp_path):
  path = tmp_path / 'cifar10.npz'
  with pytest.raises(errors.UserError, match=f'No such file.*{path}.*--data'):
    load_images(str(tmp_path))
  np.savez(path, **arrays)
  content = path.read_bytes()
  for damaged in (content[:300], b'', b'<!DOCTYPE html>'):
    path.write_bytes(damaged)
    with pytest.raises(errors.UserError, match=f'{path}.*--data_dir must be'):
      load_images(str(tmp_path))


def test_without_a_folder_images_come_from_tensorflow_datasets(
  monkeypatch, asked
):
  import tensorflow_datasets as tfds  # Slow, and for this test only.

  load = functools.partial(
    readers.load_images, 'cifar100', (32, 32, 3), 100, None
  )
  with pytest.raises(errors.UserError, match='no network here.*cifar100.npz'):
    load()
  assert len(asked) == 1 and asked[0].endswith('cifar-100-binary.tar.gz')
  monkeypatch.setattr(
    urllib.request, 'urlopen', lambda *_, **__: open('/dev/null')
  )
  with tfds.testing.mock_data(num_examples=7):
    loaded = load()
    sets = tfds.load('cifar100', split=['train', 'test'])
    sets = [list(dataset.as_numpy_iterator()) for dataset in sets]
  check(
    loaded,
    {
      f'{part}_{split}': [example[name] for example in examples]
      for split, examples in zip(('train', 'test'), sets, strict=True)
      for part, name in (('x', 'image'), ('y', 'label'))
    },
  )


def test_users_come_from_the_folder_or_from_tffs(tmp_path, monkeypatch):
  splits = tff_files.writers(num_writers=3)
  (tmp_path / '.tff').mkdir()
  tff_files.write(tmp_path / '.tff' / 'emnist_all.sqlite', splits)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  for data_dir in (None, '.tff'):
    for data, users in zip(load_users(data_dir), splits.values(), strict=True):
      assert data.client_ids == list(users)
      for user, examples in users.items():
        labels = [
          example['label']
          for example in data.create_tf_dataset_for_client(user)
        ]
        assert labels == [example['label'] for example in examples]


def test_missing_and_damaged_users_are_named(tmp_path, monkeypatch, asked):
  path = tmp_path / 'emnist_all.sqlite'
  advice = f'{path}.*--data_dir must be a folder with emnist_all.sqlite.*lzma'
  with pytest.raises(errors.UserError, match=f'No such file.*{advice}'):
    load_users(str(tmp_path))
  assert not asked
  tff_files.write(path, tff_files.writers(num_writers=30))
  # As an interrupted download leaves it.
  path.write_bytes(path.read_bytes()[:50_000])
  with pytest.raises(errors.UserError, match='malformed.*Remove a damaged'):
    load_users(str(tmp_path))
  monkeypatch.setenv('HOME', str(tmp_path / 'empty'))
  with pytest.raises(errors.UserError, match='no network here.*TFF downloads'):
    load_users(None)
