"""Loads TFF's federated Shakespeare: the next character in 715 roles' lines.

A client is a role. As in LEAF (Caldas et al., 2018), an example is 80
characters, and its label is the next character. (TFF's own examples have a
label for each position, and prototypes need a single one.) The network and the
batch size are LEAF's too. The other settings are our own.
"""

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tasks import readers
from tasks.catalog import networks
from tasks.catalog import task

_LENGTH = 80
# The codes of ASCII. Code 0 stands before the first character of a text.
_NUM_CHARACTERS = 128


def load(data_dir: str | None, name: str) -> task.Task:
  """Loads the task, with the roles as its natural partition only.

  An example is the codes of 80 characters, int32 `[80]`. Its class is the code
  of the next character. Each character of a role is the class of one example.
  `data_dir` is as in `readers.load_users`, whose file is `shakespeare.sqlite`.
  """
  load_data = tff.simulation.datasets.shakespeare.load_data
  train, test = readers.load_users(load_data, name, data_dir)
  return task.Task(
    num_classes=_NUM_CHARACTERS,
    build_model=lambda num_outputs: networks.character_lstm(
      _LENGTH, _NUM_CHARACTERS, num_outputs
    ),
    natural=(train.preprocess(_windows), test.preprocess(_windows)),
  )


def _windows(snippets: tf.data.Dataset) -> tf.data.Dataset:
  """An example for each character of each snippet."""

  def windows(snippet: Any) -> tf.data.Dataset:
    codes = tf.cast(tf.io.decode_raw(snippet['snippets'], tf.uint8), tf.int32)
    codes = tf.minimum(codes, _NUM_CHARACTERS - 1)
    starts = tf.range(tf.size(codes))[:, tf.newaxis]
    padded = tf.pad(codes, [[_LENGTH, 0]])
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(
        x=tf.gather(padded, starts + tf.range(_LENGTH)), y=codes
      )
    )

  return snippets.flat_map(windows)
