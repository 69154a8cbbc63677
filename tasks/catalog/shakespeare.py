"""TFF's federated Shakespeare: the next character, for 715 roles of his plays.

A device is a role. As in LEAF (Caldas et al., 2018), an example is 80
characters and the one that follows, so that it has one label, which prototypes
need. The network and the size of a batch are LEAF's too; the other settings are
in no publication.
"""

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tasks.catalog import networks
from tasks.catalog import published
from tasks.catalog import task
from tasks.readers import tff_data

_LENGTH = 80
# The codes of ASCII; 0 is what comes before the beginning.
_NUM_CHARACTERS = 128


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task.

  Args:
    data_dir: As in `tff_data.load`, whose file is `shakespeare.sqlite`.

  Returns:
    The `Task`, with the roles as its natural partition only. An example has the
    codes of 80 characters, int32 `[80]`, and of the next one; every character
    of a role is to be told once.

  Raises:
    DataError: As `tff_data.load`.
  """
  return make_task(
    *tff_data.load(
      tff.simulation.datasets.shakespeare.load_data,
      'shakespeare.sqlite',
      data_dir,
    )
  )


def make_task(train: task.ClientData, test: task.ClientData) -> task.Task:
  """Makes the task of what `tff.simulation.datasets.shakespeare` gives."""

  def defaults(*method: str) -> dict[str, Any]:
    return {
      **published.defaults(*method),
      'num_clients': len(train.client_ids),
      'classes_per_client': None,
      'local_steps': 10,
      'batch_size': 10,
      'weight_decay': 0.0,
      'evaluation_clients': 20,
      'rounds_per_evaluation': 50,
    }

  return task.Task(
    train=None,
    test=None,
    num_classes=_NUM_CHARACTERS,
    build_model=lambda num_outputs: networks.character_lstm(
      _LENGTH, _NUM_CHARACTERS, num_outputs
    ),
    augment=None,
    defaults=defaults,
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
