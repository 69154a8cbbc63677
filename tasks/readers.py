"""Loads the data of tasks: arrays of images, and the users of TFF's data."""

from collections.abc import Callable
import contextlib
import os
from typing import TypeAlias
import urllib.error
import urllib.request

import numpy as np
import tensorflow_federated as tff

from tasks.runs import errors
from tff_debias import checks

Examples: TypeAlias = tuple[np.ndarray, np.ndarray]
ClientData: TypeAlias = tff.simulation.datasets.ClientData

_SERVER = 'https://storage.googleapis.com/tff-datasets-public'


def load_images(
  name: str, shape: tuple[int, int, int], num_classes: int, data_dir: str | None
) -> tuple[Examples, Examples]:
  """Loads a training and a test set: uint8 `[n, *shape]` and int32 `[n]`.

  `data_dir` is a folder with `NAME.npz`, whose arrays are called x_train,
  y_train, x_test and y_test as in Keras. As there, gray images may be `[n,
  height, width]`, and labels `[n, 1]`. The order of the examples is kept. If
  `data_dir` is `None`, tensorflow-datasets downloads the data set `name`.

  Raises:
    UserError: If the data are missing, or have another shape, dtype or label.
  """
  source = 'tensorflow-datasets'
  if data_dir is not None:
    source = os.path.join(data_dir, f'{name}.npz')
  advice = (
    f'--data_dir must be a folder with {name}.npz, written by numpy.savez with'
    f' x_train and x_test, uint8 {["n", *shape]}, and y_train and y_test,'
    f' integers [n] from 0 to {num_classes - 1}. Without --data_dir,'
    ' tensorflow-datasets downloads the data, if it has them.'
  )
  try:
    if data_dir is None:
      train, test = _download(name)
    else:
      with np.load(source) as file:
        train, test = (
          (file[f'x_{split}'], file[f'y_{split}'])
          for split in ('train', 'test')
        )
  # The kind depends on where a file is damaged and how the network fails.
  except Exception as e:
    raise errors.UserError(
      f'{name} cannot be loaded from {source}: {type(e).__name__}:'
      f' {checks.first_line(e)}. {advice}'
    ) from e

  def checked(split: str, x: np.ndarray, y: np.ndarray) -> Examples:
    if shape[2] == 1 and x.shape[1:] == shape[:2]:
      x = x[..., np.newaxis]
    if x.dtype != np.uint8 or x.shape[1:] != shape or not x.size:
      wrong = f'x_{split} is {x.dtype} {list(x.shape)}'
    elif y.dtype.kind not in 'iu' or y.shape not in ((len(x),), (len(x), 1)):
      wrong = f'y_{split} is {y.dtype} {list(y.shape)} for {len(x)} images'
    elif len(outside := y[(y < 0) | (y >= num_classes)]):
      wrong = f'y_{split} has the label {outside.flat[0]}'
    else:
      return x, y.reshape(-1).astype(np.int32)
    raise errors.UserError(f'{source} is wrong: {wrong}. {advice}')

  return checked('train', *train), checked('test', *test)


def _download(name: str) -> list[Examples]:
  # Imported here because it is slow, and not needed where there is a file.
  import tensorflow_datasets as tfds

  builder = tfds.builder(name)
  if not builder.is_prepared():
    # Fails at once without internet, where tensorflow-datasets tries for
    # minutes. A server that refuses such a request has answered, too.
    url = next(iter(builder.url_infos))
    with contextlib.suppress(urllib.error.HTTPError):
      request = urllib.request.Request(url, method='HEAD')
      urllib.request.urlopen(request, timeout=30).close()
  sets = tfds.load(name, split=['train', 'test'], as_supervised=True)
  # One batch that is larger than the sets: all examples.
  batches = [dataset.batch(10**6).get_single_element() for dataset in sets]
  return [(x.numpy(), y.numpy()) for x, y in batches]


def load_users(
  load_data: Callable[..., tuple[ClientData, ClientData]],
  name: str,
  data_dir: str | None,
) -> tuple[ClientData, ClientData]:
  """Loads the training and the test data of users; examples stay on the disk.

  `load_data` is TFF's function. It opens the database `NAME.sqlite` in
  `data_dir`. If that is `None`, it downloads the database to `~/.tff`.

  Raises:
    UserError: If the database is missing or damaged.
  """
  folder = os.path.expanduser('~/.tff') if data_dir is None else data_dir
  folder = os.path.abspath(folder)  # Whatever folder a client runs in.
  path = os.path.join(folder, f'{name}.sqlite')
  try:
    if data_dir is not None:
      os.stat(path)  # If it is not there, TFF would download it.
    return load_data(cache_dir=folder)
  # The database, the server, the network and the disk may each be the reason.
  except Exception as e:
    raise errors.UserError(
      f'{path} cannot be loaded: {type(e).__name__}: {checks.first_line(e)}.'
      f' --data_dir must be a folder with {name}.sqlite, which «xz -d» unpacks'
      f' from {_SERVER}/{name}.sqlite.lzma. Without --data_dir, TFF downloads'
      ' it. Remove a damaged file.'
    ) from e
