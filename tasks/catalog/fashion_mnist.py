"""Loads Fashion-MNIST, with network and settings published for CIFAR-10."""

import os

import numpy as np

from tasks.catalog import published
from tasks.catalog import task
from tasks.readers import files
from tasks.readers import idx
from tasks.readers import tfds

_DEBIAN_DIR = '/usr/share/datasets/fashion-mnist'
_NUM_CLASSES = 10
_IMAGE_SHAPE = (28, 28, 1)
# The SHA-256 of the files, not compressed, in Debian's package.
_DIGESTS = {
  'train-images-idx3-ubyte': (
    'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888'
  ),
  'train-labels-idx1-ubyte': (
    'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9'
  ),
  't10k-images-idx3-ubyte': (
    '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b'
  ),
  't10k-labels-idx1-ubyte': (
    '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34'
  ),
}

defaults = published.defaults


def load(data_dir: str | None = None) -> task.Task:
  """Loads 60,000 training and 10,000 test images `[28, 28, 1]`.

  `data_dir` has the four IDX files, compressed or not. By default it is the
  folder of Debian's package dataset-fashion-mnist. If that is not installed,
  tensorflow-datasets is used, which downloads the data set the first time.
  """
  if data_dir is None and not os.path.isdir(_DEBIAN_DIR):
    train, test = tfds.load('fashion_mnist', _how_to_get())
  else:
    data_dir = _DEBIAN_DIR if data_dir is None else data_dir
    train, test = _load_idx(data_dir, 'train'), _load_idx(data_dir, 't10k')
  return published.image_task(train, test, _NUM_CLASSES)


def _load_idx(data_dir: str, prefix: str) -> tuple[np.ndarray, np.ndarray]:
  """The images `[n, 28, 28, 1]` and labels `[n]` of one set, uint8."""
  names = f'{prefix}-images-idx3-ubyte', f'{prefix}-labels-idx1-ubyte'
  x_path, y_path = (_find(data_dir, name) for name in names)
  x, y = (
    idx.read(path, rank, ('Fashion-MNIST', _DIGESTS[name]))
    for path, rank, name in zip((x_path, y_path), (3, 1), names, strict=True)
  )
  if x.shape[1:] != _IMAGE_SHAPE[:2]:
    raise files.DataError(
      f'{x_path} must have images of {list(_IMAGE_SHAPE[:2])}, got'
      f' {list(x.shape[1:])}.'
    )
  if not len(x) or len(x) != len(y):
    raise files.DataError(
      f'{y_path} must have one label for each image in {x_path} (and there must'
      f' be some), got {len(y)} labels and {len(x)} images.'
    )
  if y.max() >= _NUM_CLASSES:
    raise files.DataError(
      f'{y_path} must have labels of 0 to {_NUM_CLASSES - 1}, got {y.max()}.'
    )
  return x[..., None], y


def _find(data_dir: str, name: str) -> str:
  for path in (f'{name}.gz', name):
    path = os.path.join(data_dir, path)
    if os.path.isfile(path):
      return path
  raise files.DataError(
    f'There is neither {name}.gz nor {name} in {data_dir}. {_how_to_get()}'
  )


def _how_to_get() -> str:
  return (
    'To get Fashion-MNIST, either run «apt-get install dataset-fashion-mnist»'
    f' (Debian, Ubuntu; it goes to {_DEBIAN_DIR}); or put its four IDX files,'
    ' from https://github.com/zalandoresearch/fashion-mnist, into a folder and'
    ' name that as data_dir; or, with an internet connection, leave data_dir'
    ' out, and tensorflow-datasets downloads it.'
  )
