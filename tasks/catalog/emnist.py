"""Loads TFF's federated EMNIST: digits and letters written by 3,400 people.

A client is a writer. The network is the published one for images. The settings
are our own, for the small data sets of the writers.
"""

import collections
import functools
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tasks.catalog import networks
from tasks.catalog import published
from tasks.catalog import task
from tasks.readers import tff_data

_IMAGE_SHAPE = (28, 28, 1)
_NUM_DIGITS, _NUM_CHARACTERS = 10, 62


def load(data_dir: str | None = None, only_digits: bool = False) -> task.Task:
  """Loads the task.

  The network inverts the pixels: the background becomes 0 and ink becomes 1.

  Args:
    data_dir: As in `tff_data.load`, whose file is `emnist_all.sqlite`.
    only_digits: Whether to leave out the letters.

  Returns:
    The `Task`, with the writers as its natural partition only. There are 3,400
    writers with 671,585 training and 77,483 test images `[28, 28, 1]` of 62
    classes; or 3,383 writers with 341,873 and 40,832 images of 10 classes.
  """
  load_data = functools.partial(
    tff.simulation.datasets.emnist.load_data, only_digits
  )
  data = tff_data.load(load_data, 'emnist_all.sqlite', data_dir)
  return make_task(*data, _NUM_DIGITS if only_digits else _NUM_CHARACTERS)


def make_task(
  train: task.ClientData, test: task.ClientData, num_classes: int
) -> task.Task:
  """Makes the task of the data of `tff.simulation.datasets.emnist`."""

  def defaults(*method: str) -> dict[str, Any]:
    return {
      **published.defaults(*method),
      'num_clients': len(train.client_ids),
      'classes_per_client': None,
      'local_steps': 10,
      'batch_size': 20,
      'evaluation_clients': 100,
    }

  return task.Task(
    train=None,
    test=None,
    num_classes=num_classes,
    build_model=_build_model,
    augment=None,
    defaults=defaults,
    natural=(train.preprocess(_preprocess), test.preprocess(_preprocess)),
  )


def _build_model(num_outputs: int) -> tf.keras.Model:
  scaling = tf.keras.layers.Rescaling(-1.0, 1.0, name='scaling')
  return networks.cnn(_IMAGE_SHAPE, num_outputs, scaling)


def _preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
  return dataset.map(
    lambda example: collections.OrderedDict(
      x=example['pixels'][..., None], y=example['label']
    )
  )
