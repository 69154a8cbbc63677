"""Writes small databases in the format of TFF's data sets.

TFF can write them too, but not with a client in both splits.
"""

import sqlite3

import numpy as np
import tensorflow as tf

_TABLES = (
  'CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL,'
  ' serialized_example_proto BLOB NOT NULL);',
  'CREATE TABLE client_metadata (client_id TEXT NOT NULL,'
  ' split_name TEXT NOT NULL, num_examples INTEGER NOT NULL);',
)


def write(path, splits):
  """Writes {split: {client: [{feature: array of float, int or bytes}]}}."""
  with sqlite3.connect(path) as connection:
    for table in _TABLES:
      connection.execute(table)
    for split, clients in splits.items():
      for client, examples in clients.items():
        connection.execute(
          'INSERT INTO client_metadata VALUES (?, ?, ?);',
          (client, split, len(examples)),
        )
        connection.executemany(
          'INSERT INTO examples VALUES (?, ?, ?);',
          [(split, client, _serialized(example)) for example in examples],
        )
  connection.close()


def _serialized(example):
  return tf.train.Example(
    features=tf.train.Features(
      feature={name: _feature(value) for name, value in example.items()}
    )
  ).SerializeToString()


def _feature(value):
  if isinstance(value, bytes):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
  value = np.asarray(value)
  if np.issubdtype(value.dtype, np.floating):
    return tf.train.Feature(float_list=tf.train.FloatList(value=value.ravel()))
  return tf.train.Feature(int64_list=tf.train.Int64List(value=value.ravel()))


def writers(num_writers=5, num_classes=62, num_train=12, num_test=4, seed=0):
  """Splits of writers with random images, as `write` takes them."""
  rng = np.random.default_rng(seed)
  prefix = 'digits_only' if num_classes == 10 else 'all'
  return {
    f'{prefix}_{split}': {
      f'f{i:04d}_{i * 7:02d}': [
        {
          'pixels': rng.random((28, 28)).astype(np.float32),
          'label': rng.integers(num_classes),
        }
        for _ in range(size)
      ]
      for i in range(num_writers)
    }
    for split, size in (('train', num_train), ('test', num_test))
  }
