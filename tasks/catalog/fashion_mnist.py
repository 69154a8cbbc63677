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
    The `Task`; there are 60,000 training and 10,000 test images `[28, 28, 1]`.

  Raises:
    DataError: If the data set is missing, with how to get it, or damaged, with
      what was found and what is right.
  """
  if data_dir is None and not os.path.isdir(_DEBIAN_DIR):
    train, test = _load_tfds()
  else:
    data_dir = _DEBIAN_DIR if data_dir is None else data_dir
    train, test = _load_idx(data_dir, 'train'), _load_idx(data_dir, 't10k')
  train_x, test_x, black = images.normalize(train[0], test[0])
  return task.Task(
    train=(train_x, train[1].astype(np.int32)),
    test=(test_x, test[1].astype(np.int32)),
    num_classes=_NUM_CLASSES,
    build_model=_build_model,
    augment=images.random_crop_and_flip(black),
    defaults={
      'rounds': 1000,
      'num_devices': 100,
      'participants': 10,
      'classes_per_device': 5,
      'local_steps': 50,
      'batch_size': 50,
      'learning_rate': 0.1,
      'learning_rate_decay': 0.997,
      'weight_decay': 1e-3,
      'alpha': {'none': 1e-2, 'maml': 1e-2, 'proto': 1e-1},
      'maml_steps': 5,
      'maml_learning_rate': 1e-2,
      'evaluation_devices': 0,
      'rounds_per_evaluation': 10,
    },
    scaling=images.scaling(train[0], train_x, black),
  )


def _build_model(num_outputs: int) -> tf.keras.Model:
  return networks.cnn(_IMAGE_SHAPE, num_outputs)


def _load_idx(data_dir: str, prefix: str) -> tuple[np.ndarray, np.ndarray]:
  """The images `[n, 28, 28, 1]` and labels `[n]` of one set, uint8."""
  x_path = _find(data_dir, f'{prefix}-images-idx3-ubyte')
  y_path = _find(data_dir, f'{prefix}-labels-idx1-ubyte')
  x, y = idx.read(x_path, rank=3), idx.read(y_path, rank=1)
  if x.shape[1:] != _IMAGE_SHAPE[:2]:
    raise task.DataError(
      f'{x_path} must have images of {list(_IMAGE_SHAPE[:2])}, got'
      f' {list(x.shape[1:])}.'
    )
  if not len(x) or len(x) != len(y):
    raise task.DataError(
      f'{y_path} must have one label for each image in {x_path} (and there must'
      f' be some), got {len(y)} labels and {len(x)} images.'
    )
  if y.max() >= _NUM_CLASSES:
    raise task.DataError(
      f'{y_path} must have labels of 0 to {_NUM_CLASSES - 1}, got {y.max()}.'
    )
  return x[..., None], y


def _find(data_dir: str, name: str) -> str:
  for path in (f'{name}.gz', name):
    path = os.path.join(data_dir, path)
    if os.path.isfile(path):
      return path
  raise task.DataError(
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
      'fashion_mnist', split=['train', 'test'], as_supervised=True
    )
    # Larger than the sets: all examples in one batch.
    batches = [dataset.batch(10**6).get_single_element() for dataset in sets]
    return [(x.numpy(), y.numpy()) for x, y in batches]
  # Without internet this ends in any of a dozen exceptions of as many packages.
  except Exception as e:
    raise task.DataError(
      f'Fashion-MNIST is not in {_DEBIAN_DIR}, and tensorflow-datasets could'
      f' not provide it ({type(e).__name__}: {e}). {_how_to_get()}'
    ) from e
