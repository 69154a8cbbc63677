"""Scikit-learn's handwritten digits: a task for a laptop, without a download."""

import numpy as np
from sklearn import datasets
from sklearn import model_selection
import tensorflow as tf

from tasks import networks
from tasks import task

_SPLIT_SEED = 0
_DEFAULTS = task.Defaults(
  num_devices=40,
  devices_per_round=4,
  classes_per_device=3,
  rounds=100,
  local_steps=10,
  batch_size=10,
  learning_rate=0.1,
  learning_rate_decay=0.997,
  weight_decay=1e-3,
)


def load(data_dir: str | None = None) -> task.Task:
  """Loads the task.

  The 1,797 images of 8×8 are scaled from 0..16 to 0..1. Two thirds of each class
  are for training, always the same.

  Args:
    data_dir: Must be `None`: the data come with scikit-learn.

  Returns:
    The `Task`; `train_x` is float32 `[1198, 8, 8]`, `test_x` `[599, 8, 8]`.

  Raises:
    ValueError: If `data_dir` is given.
  """
  if data_dir is not None:
    raise ValueError(
      'The digits come with scikit-learn and are in no folder: data_dir must be'
      f' None, got {data_dir!r}.'
    )
  digits = datasets.load_digits()
  y = digits.target.astype(np.int32)
  train_x, test_x, train_y, test_y = model_selection.train_test_split(
    (digits.images / 16).astype(np.float32),
    y,
    test_size=1 / 3,
    stratify=y,
    random_state=_SPLIT_SEED,
  )
  return task.Task(
    train_x, train_y, test_x, test_y, 10, _build_model, None, _DEFAULTS
  )


def _build_model(num_outputs: int) -> tf.keras.Model:
  return networks.mlp((8, 8), (32, 16), num_outputs)
