"""Builds the networks of the tasks, as Keras models."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def mlp(
  input_shape: Sequence[int],
  hidden_sizes: Sequence[int],
  num_outputs: int,
  scaling: tf.keras.layers.Layer | None = None,
) -> tf.keras.Model:
  """A multilayer perceptron with ReLU.

  Args:
    input_shape: The shape of an input, without the batch; it is flattened.
    hidden_sizes: The sizes of the hidden layers; the last is the feature.
    num_outputs: The number of logits.
    scaling: The first layer, which scales raw inputs. `None` for no scaling.

  Returns:
    A new model: `[b, *input_shape]` to float32 `[b, num_outputs]`.
  """
  model = _start(input_shape, scaling)
  model.add(tf.keras.layers.Flatten())
  for size in hidden_sizes:
    model.add(tf.keras.layers.Dense(size, 'relu'))
  model.add(tf.keras.layers.Dense(num_outputs))
  return model


def cnn(
  input_shape: Sequence[int],
  num_outputs: int,
  scaling: tf.keras.layers.Layer | None = None,
) -> tf.keras.Model:
  """The network of the published CIFAR experiments (Acar et al., 2021).

  Convolutions are not padded: 797,962 weights for 32×32×3 and 10 outputs. The
  initial weights are distributed as the authors', see `_add`.

  Args:
    input_shape: `(height, width, channels)`, 16×16 at least.
    num_outputs: The number of logits.
    scaling: The first layer, which scales raw inputs. `None` for no scaling.

  Returns:
    A new model: `[b, *input_shape]` to float32 `[b, num_outputs]`.
  """
  return _convolutional(input_shape, 2, (384, 192), num_outputs, scaling)


def large_cnn(
  input_shape: Sequence[int],
  num_outputs: int,
  scaling: tf.keras.layers.Layer | None = None,
) -> tf.keras.Model:
  """The network of the authors' program for mini-ImageNet.

  Convolutions are not padded: 1,514,792 weights for 84×84×3 and 100 outputs.
  The initial weights are distributed as the authors', see `_add`.

  Args:
    input_shape: `(height, width, channels)`, 36×36 at least.
    num_outputs: The number of logits.
    scaling: The first layer, which scales raw inputs. `None` for no scaling.

  Returns:
    A new model: `[b, *input_shape]` to float32 `[b, num_outputs]`.
  """
  return _convolutional(input_shape, 3, (400, 100), num_outputs, scaling)


def character_lstm(
  length: int, num_characters: int, num_outputs: int
) -> tf.keras.Model:
  """The network of LEAF for the next character (Caldas et al., 2018).

  Args:
    length: The number of characters in an input.
    num_characters: The number of different characters.
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


def _start(
  input_shape: Sequence[int], scaling: tf.keras.layers.Layer | None
) -> tf.keras.Sequential:
  model = tf.keras.Sequential([tf.keras.layers.Input(input_shape)])
  if scaling is not None:
    model.add(scaling)
  return model


def _convolutional(
  input_shape: Sequence[int],
  num_convolutions: int,
  hidden_sizes: Sequence[int],
  num_outputs: int,
  scaling: tf.keras.layers.Layer | None,
) -> tf.keras.Model:
  model = _start(input_shape, scaling)
  for _ in range(num_convolutions):
    _add(model, tf.keras.layers.Conv2D, 64, kernel_size=5, activation='relu')
    model.add(tf.keras.layers.MaxPool2D())
  model.add(tf.keras.layers.Flatten())
  for size in hidden_sizes:
    _add(model, tf.keras.layers.Dense, size, activation='relu')
  _add(model, tf.keras.layers.Dense, num_outputs)
  return model


def _add(
  model: tf.keras.Sequential,
  layer: type[tf.keras.layers.Layer],
  size: int,
  **options: Any,
) -> None:
  """Adds a layer with the initial weights of PyTorch, which the authors use.

  Kernel and bias are uniform in ±1/sqrt(fan_in). The fan-in is the number of
  inputs of an output: kernel height · kernel width · channels, or inputs. By
  default Keras has Glorot's wider kernels and zero biases; with them, PFLDyn
  with prototypes learns CIFAR-10 more slowly.

  Args:
    model: The model, whose output is the layer's input.
    layer: `tf.keras.layers.Conv2D` or `tf.keras.layers.Dense`.
    size: The number of filters or of outputs.
    **options: The layer's other arguments.
  """
  fan_in = model.output_shape[-1] * options.get('kernel_size', 1) ** 2
  bound = fan_in**-0.5
  # Two objects: an initializer without a seed gives the same numbers each time.
  # The numbers follow Keras' global seed.
  kernel, bias = (
    tf.keras.initializers.RandomUniform(-bound, bound) for _ in range(2)
  )
  model.add(
    layer(size, kernel_initializer=kernel, bias_initializer=bias, **options)
  )
