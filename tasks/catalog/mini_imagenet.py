"""Loads mini-ImageNet as in the published experiment.

The network and the augmentation are those of the authors' program. So is the
split: of each of the 100 classes, 500 images are for training and 100 for the
test. The authors draw the split anew each time; here it is always the same.
Their program was run on CIFAR-10 only. That a client holds 20 of the 100
classes is our assumption.
"""

import functools
import os
from typing import Any

import numpy as np

from tasks.catalog import images
from tasks.catalog import networks
from tasks.catalog import published
from tasks.catalog import task
from tasks.readers import files
from tasks.readers import pickles

_IMAGE_SHAPE = (84, 84, 3)
# The classes in the files of training, validation and test, in this order.
_NUM_CLASSES = (64, 16, 20)
_IMAGES_PER_CLASS = 600
_TRAIN_IMAGES_PER_CLASS = 500
_SPLIT_SEED = 0
_FORMATS = (
  tuple(
    f'miniImageNet_category_split_{part}.pickle'
    for part in ('train_phase_train', 'val', 'test')
  ),
  tuple(f'mini-imagenet-cache-{part}.pkl' for part in ('train', 'val', 'test')),
)
_HOW_TO_GET = (
  'To get mini-ImageNet, put into a folder, and name that as data_dir, either'
  f' {", ".join(_FORMATS[0])} (as the authors; linked from'
  ' https://github.com/gidariss/FewShotWithoutForgetting); or'
  f' {", ".join(_FORMATS[1])} (linked from'
  ' https://github.com/renmengye/few-shot-ssl-public).'
)

defaults = functools.partial(published.defaults, classes_per_client=20)


def load(data_dir: str | None = None) -> task.Task:
  """Loads 50,000 training and 10,000 test images `[84, 84, 3]`.

  Loading needs 3 GB of memory, the loaded task 1.3 GB. The network normalizes
  images by the mean and the deviation of the training set. Training images are
  padded by 8, and at random cropped, mirrored, and changed in brightness,
  contrast and saturation.

  `data_dir` has three pickles of dicts. One distribution of the data set has
  the keys `data` and `labels`, the other `image_data` and `class_dict`. The
  classes of the other are numbered in the order of their names, file by file.
  """
  if data_dir is None:
    raise files.DataError(
      f'Mini-ImageNet has to be in a folder, but data_dir is not given.'
      f' {_HOW_TO_GET}'
    )
  paths = _find(data_dir)
  rng = np.random.default_rng(_SPLIT_SEED)
  parts, first = [], 0
  for path, num_classes in zip(paths, _NUM_CLASSES, strict=True):
    parts.append(_load_part(path, first, num_classes, rng))
    first += num_classes
  train_x, train_y, test_x, test_y = map(
    np.concatenate, zip(*parts, strict=True)
  )
  statistics = images.statistics(train_x)
  return task.Task(
    train=(train_x, train_y),
    test=(test_x, test_y),
    num_classes=sum(_NUM_CLASSES),
    build_model=lambda num_outputs: networks.large_cnn(
      _IMAGE_SHAPE, num_outputs, images.scaling(*statistics)
    ),
    augment=images.compose(
      images.random_crop_and_flip(padding=8), images.random_color()
    ),
  )


def _find(data_dir: str) -> list[str]:
  """The three files of the distribution that is there."""
  for names in _FORMATS:
    paths = [os.path.join(data_dir, name) for name in names]
    missing = [path for path in paths if not os.path.isfile(path)]
    if not missing:
      return paths
    if len(missing) < len(paths):
      raise files.DataError(
        f'Of the three files of mini-ImageNet there is no'
        f' {" and no ".join(missing)}. {_HOW_TO_GET}'
      )
  raise files.DataError(
    f'There is no mini-ImageNet in {data_dir}. {_HOW_TO_GET}'
  )


def _load_part(
  path: str, first: int, num_classes: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
  """The training and the test images and classes of a file, shuffled."""
  content = pickles.read(path)
  x, y = _decode(path, content, first)
  if (
    not isinstance(x, np.ndarray)
    or x.dtype != np.uint8
    or x.shape[1:] != _IMAGE_SHAPE
  ):
    found = type(x).__name__
    if isinstance(x, np.ndarray):
      found = f'{x.dtype} {list(x.shape)}'
    raise files.DataError(
      f'{path} must have images of uint8 {["n", *_IMAGE_SHAPE]}, got {found}.'
    )
  classes = np.arange(first, first + num_classes)
  found = dict(zip(*np.unique(y, return_counts=True), strict=True))
  right = dict.fromkeys(classes, _IMAGES_PER_CLASS)
  if len(x) != len(y) or found != right:
    wrong = [c for c in found.keys() | right if found.get(c) != right.get(c)]
    counts = f'{len(x)} images and {len(y)} labels'
    if wrong:
      counts += f', and {found.get(wrong[0], 0)} images of class {wrong[0]}'
    raise files.DataError(
      f'{path} must have {_IMAGES_PER_CLASS} images of each of the classes'
      f' {classes[0]} to {classes[-1]}, got {counts}.'
    )
  shuffled = [rng.permutation(np.flatnonzero(y == c)) for c in classes]
  chosen = [part[:_TRAIN_IMAGES_PER_CLASS] for part in shuffled]
  rest = [part[_TRAIN_IMAGES_PER_CLASS:] for part in shuffled]
  train, test = np.concatenate(chosen), np.concatenate(rest)
  return x[train], y[train], x[test], y[test]


def _decode(path: str, content: Any, first: int) -> tuple[Any, np.ndarray]:
  """The images and the classes, int32 `[n]`; neither is checked yet."""
  try:
    if 'class_dict' in content:
      x = content['image_data']
      y = np.full(len(x), -1, np.int32)
      for place, name in enumerate(sorted(content['class_dict'])):
        y[np.asarray(content['class_dict'][name])] = first + place
      return x, y
    return content['data'], np.asarray(content['labels'], np.int32).reshape(-1)
  # Deeply nested lists are a RecursionError; lists for dicts an AttributeError.
  except (
    *(AttributeError, IndexError, KeyError, RecursionError),
    *(TypeError, ValueError),
  ) as e:
    raise files.DataError(
      f"{path} must be a dict with either 'data' and 'labels' or 'image_data'"
      f" and 'class_dict' that fit each other: {type(e).__name__}: {e}."
    ) from e
