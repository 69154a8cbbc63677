"""Loads image data sets from tensorflow-datasets."""

import contextlib
import urllib.error
import urllib.request

import numpy as np

from tasks.readers import files


def load(name: str, how_to_get: str) -> list[tuple[np.ndarray, np.ndarray]]:
  """Loads a data set, which is downloaded when it is first used.

  Gives for the training and the test set the images, uint8 `[examples, height,
  width, channels]`, and the classes, int64 `[examples]`. `how_to_get`, the end
  of the error's message, says other ways to get the data.
  """
  try:
    # Imported here because it is slow, and not needed where there are files.
    import tensorflow_datasets as tfds

    builder = tfds.builder(name)
    if not builder.is_prepared():
      _check_server(next(iter(builder.url_infos)))
    sets = tfds.load(name, split=['train', 'test'], as_supervised=True)
    # One batch that is larger than the sets: all examples.
    batches = [dataset.batch(10**6).get_single_element() for dataset in sets]
    return [(x.numpy(), y.numpy()) for x, y in batches]
  # Without internet, any of a dozen exceptions of as many packages is raised.
  except Exception as e:
    raise files.DataError(
      f'tensorflow-datasets could not provide {name} ({type(e).__name__}: {e}).'
      f' {how_to_get}'
    ) from e


def _check_server(url: str) -> None:
  """Fails at once without internet; the library would try for minutes."""
  request = urllib.request.Request(url, method='HEAD')
  # A server that refuses such a request has answered too.
  with contextlib.suppress(urllib.error.HTTPError):
    urllib.request.urlopen(request, timeout=30).close()
