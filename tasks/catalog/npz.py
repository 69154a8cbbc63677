"""Loads data of your own: a file DEVICE.npz for each device.

A file has the arrays `x`, the inputs `[n, ...]`, and `y`, the classes from 0,
integers `[n]`; and `x_test` and `y_test`, or each fifth example is for tests.
"""

import os

import numpy as np
import tensorflow as tf

from tasks import catalog
from tasks.catalog import networks
from tasks.catalog import task
from tasks.runs import errors
import tff_debias


def load(data_dir: str | None, *unused: str) -> task.Task:
  """Loads the devices in a folder; a network takes inputs as they are."""
  train, test = {}, {}
  for path in catalog.device_files(data_dir):
    name = os.path.splitext(os.path.basename(path))[0]
    arrays = catalog.read_device(path)
    x, y = arrays['x'], arrays['y']
    if 'x_test' in arrays:
      train[name], test[name] = (x, y), (arrays['x_test'], arrays['y_test'])
    else:
      is_test = np.arange(len(y)) % 5 == 4
      train[name], test[name] = (
        (x[~is_test], y[~is_test]),
        (x[is_test], y[is_test]),
      )
  try:
    natural = tuple(map(tff_debias.client_data_from, (train, test)))
  except (TypeError, ValueError) as e:
    raise errors.UserError(f'--data_dir={data_dir}: {e}') from e
  inputs = next(iter(train.values()))[0]
  return task.Task(
    num_classes=1 + int(max(y.max() for _, y in train.values())),
    build_model=lambda num_outputs: networks.mlp(
      inputs.shape[1:],
      (64, 32),
      num_outputs,
      # Bytes are pixels.
      tf.keras.layers.Rescaling(1 / 255) if inputs.dtype == np.uint8 else None,
    ),
    natural=(natural[0], natural[1]),
  )
