"""The networks of the tasks, as Keras models."""

from collections.abc import Sequence

import tensorflow as tf


def mlp(
  input_shape: Sequence[int],
  hidden_sizes: Sequence[int],
  num_outputs: int,
  *scaling: tf.keras.layers.Layer,
) -> tf.keras.Model:
  """A multilayer perceptron with ReLU.

  Args:
    input_shape: The shape of an input, without the batch; it is flattened.
    hidden_sizes: The sizes of the hidden layers; the last is the feature.
    num_outputs: The number of logits.
    *scaling: A layer that makes the network's input of raw input, if it has to
      be made.

  Returns:
    A new model: `[b, *input_shape]` to float32 `[b, num_outputs]`.
  """
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input(input_shape),
      *scaling,
      tf.keras.layers.Flatten(),
      *(tf.keras.layers.Dense(size, 'relu') for size in hidden_sizes),
      tf.keras.layers.Dense(num_outputs),
    ]
  )


def cnn(
  input_shape: Sequence[int],
  num_outputs: int,
  *scaling: tf.keras.layers.Layer,
) -> tf.keras.Model:
  """The network of the published CIFAR experiments (Acar et al., 2021).

  Convolutions are not padded: 797,962 weights for 32×32×3 and 10 outputs.

  Args:
    input_shape: `(height, width, channels)`, 16×16 at least.
    num_outputs: The number of logits.
    *scaling: A layer that makes the network's input of raw input, if it has to
      be made.

  Returns:
    A new model: `[b, *input_shape]` to float32 `[b, num_outputs]`.
  """
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input(input_shape),
      *scaling,
      tf.keras.layers.Conv2D(64, 5, activation='relu'),
      tf.keras.layers.MaxPool2D(),
      tf.keras.layers.Conv2D(64, 5, activation='relu'),
      tf.keras.layers.MaxPool2D(),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(384, 'relu'),
      tf.keras.layers.Dense(192, 'relu'),
      tf.keras.layers.Dense(num_outputs),
    ]
  )


def large_cnn(
  input_shape: Sequence[int],
  num_outputs: int,
  *scaling: tf.keras.layers.Layer,
) -> tf.keras.Model:
  """The network of the authors' program for mini-ImageNet.

  Convolutions are not padded: 1,514,792 weights for 84×84×3 and 100 outputs.

  Args:
    input_shape: `(height, width, channels)`, 36×36 at least.
    num_outputs: The number of logits.
    *scaling: A layer that makes the network's input of raw input, if it has to
      be made.

  Returns:
    A new model: `[b, *input_shape]` to float32 `[b, num_outputs]`.
  """
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input(input_shape),
      *scaling,
      tf.keras.layers.Conv2D(64, 5, activation='relu'),
      tf.keras.layers.MaxPool2D(),
      tf.keras.layers.Conv2D(64, 5, activation='relu'),
      tf.keras.layers.MaxPool2D(),
      tf.keras.layers.Conv2D(64, 5, activation='relu'),
      tf.keras.layers.MaxPool2D(),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(400, 'relu'),
      tf.keras.layers.Dense(100, 'relu'),
      tf.keras.layers.Dense(num_outputs),
    ]
  )


def character_lstm(
  length: int, num_characters: int, num_outputs: int
) -> tf.keras.Model:
  """The network of LEAF for the next character (Caldas et al., 2018).

  Args:
    length: The characters that are seen.
    num_characters: The number of different ones.
    num_outputs: The number of logits.

  Returns:
    A new model: int32 `[b, length]` to float32 `[b, num_outputs]`.
  """
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input([length], dtype=tf.int32),
      tf.keras.layers.Embedding(num_characters, 8),
      tf.keras.layers.LSTM(256, return_sequences=True),
      tf.keras.layers.LSTM(256),
      tf.keras.layers.Dense(num_outputs),
    ]
  )
