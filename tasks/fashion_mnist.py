"""Fashion-MNIST, with the network and the settings published for CIFAR-10."""

import os

import numpy as np
import tensorflow as tf

from tasks import idx
from tasks import images
from tasks import networks
from tasks import task

_DEBIAN_DIR = '/usr/share/datasets/fashion-mnist'
_NUM_CLASSES = 10
_IMAGE_SHAPE = (28, 28, 1)
_DEFAULTS = task.Defaults(
  num_devices=100,
  devices_per_round=10,
  classes_per_device=5,
  rounds=1000,
  local_steps=50,
  batch_size=50,
  learning_rate=0.1,
  learning_rate_decay=0.997,
  weight_decay=1e-3,
)


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task.

  Images are normalized by the mean and the deviation of the training set;
  training images are padded by 4, cropped and mirrored at random.

  Args:
    data_dir: A folder with the four IDX files, as they are distributed or
      unpacked. By default that of Debian's package dataset-fashion-mnist, and
      without it tensorflow-datasets, which downloads the set when it is first
      used.

  Returns:
    The `Task`; `train_x` is float32 `[60000, 28, 28, 1]`, `test_x`
    `[10000, 28, 28, 1]`.

  Raises:
    FileNotFoundError: If the data set is nowhere, with how to get it.
    ValueError: If a file is damaged, with what was found and what is right.
  """
  if data_dir is None and not os.path.isdir(_DEBIAN_DIR):
    train, test = _load_tfds()
  else:
    data_dir = data_dir or _DEBIAN_DIR
    train, test = _load_idx(data_dir, 'train'), _load_idx(data_dir, 't10k')
  train_x, test_x, black = images.normalize(train[0], test[0])
  return task.Task(
    train_x,
    train[1].astype(np.int32),
    test_x,
    test[1].astype(np.int32),
    _NUM_CLASSES,
    _build_model,
    images.random_crop_and_flip(black),
    _DEFAULTS,
  )


def _build_model(num_outputs: int) -> tf.keras.Model:
  return networks.cnn(_IMAGE_SHAPE, num_outputs)


def _load_idx(data_dir: str, prefix: str) -> tuple[np.ndarray, np.ndarray]:
  """The images `[n, 28, 28, 1]` and labels `[n]` of one set, uint8."""
  x_path = _find(data_dir, f'{prefix}-images-idx3-ubyte')
  y_path = _find(data_dir, f'{prefix}-labels-idx1-ubyte')
  x, y = idx.read(x_path, rank=3), idx.read(y_path, rank=1)
  if x.shape[1:] != _IMAGE_SHAPE[:2]:
    raise ValueError(
      f'{x_path} must have images of {list(_IMAGE_SHAPE[:2])}, got'
      f' {list(x.shape[1:])}.'
    )
  if not len(x) or len(x) != len(y):
    raise ValueError(
      f'{y_path} must have one label for each image in {x_path} (and there must'
      f' be some), got {len(y)} labels and {len(x)} images.'
    )
  if y.max() >= _NUM_CLASSES:
    raise ValueError(
      f'{y_path} must have labels of 0 to {_NUM_CLASSES - 1}, got {y.max()}.'
    )
  return x[..., None], y


def _find(data_dir: str, name: str) -> str:
  for path in (f'{name}.gz', name):
    path = os.path.join(data_dir, path)
    if os.path.isfile(path):
      return path
  raise FileNotFoundError(
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


def _load_tfds() -> list[tuple[np.ndarray, np.ndarray]]:
  """The same as `_load_idx`, of both sets."""
  try:
    # Slow to import, and not needed where the files are there.
    import tensorflow_datasets as tfds

    sets = tfds.load(
      'fashion_mnist',
      split=['train', 'test'],
      batch_size=-1,
      as_supervised=True,
    )
    return [(x.numpy(), y.numpy()) for x, y in sets]
  # Without internet this ends in any of a dozen exceptions of as many packages.
  except Exception as e:
    raise FileNotFoundError(
      f'Fashion-MNIST is not in {_DEBIAN_DIR}, and tensorflow-datasets could'
      f' not provide it ({type(e).__name__}: {e}). {_how_to_get()}'
    ) from e
