"""Loads scikit-learn's digits: a task for a laptop, without a download."""

import numpy as np
from sklearn import datasets
from sklearn import model_selection
import tensorflow as tf

from tasks.catalog import networks
from tasks.catalog import task


def load(*unused: str | None) -> task.Task:
  """Loads 1,198 training and 599 test images of 8×8, with pixels from 0 to 16.

  Two thirds of each class are for training, always the same images. The network
  scales the pixels to 0 to 1.
  """
  digits = datasets.load_digits()
  y = digits.target.astype(np.int32)
  train_x, test_x, train_y, test_y = model_selection.train_test_split(
    digits.images.astype(np.float32),
    y,
    test_size=1 / 3,
    stratify=y,
    random_state=0,
  )
  return task.Task(
    train=(train_x, train_y),
    test=(test_x, test_y),
    num_classes=10,
    build_model=_build_model,
  )


def _build_model(num_outputs: int) -> tf.keras.Model:
  scaling = tf.keras.layers.Rescaling(1 / 16, name='scaling')
  return networks.mlp((8, 8), (32, 16), num_outputs, scaling)
