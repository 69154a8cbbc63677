"""Loads TFF's federated EMNIST: digits and letters written by 3,400 people.

A client is a writer. The network is the published one for images. The settings
are our own, for the small data sets of the writers.
"""

import collections
import functools

import tensorflow as tf
import tensorflow_federated as tff

from tasks import readers
from tasks.catalog import networks
from tasks.catalog import task


def load(data_dir: str | None, name: str) -> task.Task:
  """Loads the task, with the writers as its natural partition only.

  `emnist` has 3,400 writers with 671,585 training and 77,483 test images `[28,
  28, 1]` of 62 classes, and `emnist_digits` 3,383 writers with 341,873 and
  40,832 images of 10 classes. The network inverts the pixels: the background
  becomes 0 and ink becomes 1. `data_dir` is as in `readers.load_users`, whose
  file is `emnist_all.sqlite`.
  """
  only_digits = name == 'emnist_digits'
  load_data = functools.partial(
    tff.simulation.datasets.emnist.load_data, only_digits
  )
  train, test = readers.load_users(load_data, 'emnist_all', data_dir)
  return task.Task(
    num_classes=10 if only_digits else 62,
    build_model=lambda num_outputs: networks.cnn(
      (28, 28, 1),
      num_outputs,
      tf.keras.layers.Rescaling(-1.0, 1.0, name='scaling'),
    ),
    natural=(train.preprocess(_preprocess), test.preprocess(_preprocess)),
  )


def _preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
  return dataset.map(
    lambda example: collections.OrderedDict(
      x=example['pixels'][..., None], y=example['label']
    )
  )
