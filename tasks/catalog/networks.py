"""Builds the networks of the tasks, as Keras models, and their models."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

import tff_debias


def mlp(
  input_shape: Sequence[int],
  hidden_sizes: Sequence[int],
  num_outputs: int,
  scaling: tf.keras.layers.Layer | None = None,
  has_published_weights: bool = False,
) -> tf.keras.Model:
  """A multilayer perceptron with ReLU; the last hidden layer is the feature.

  The initial weights are Keras', or distributed as the authors' are.
  """
  model = _start(input_shape, scaling)
  model.add(tf.keras.layers.Flatten())
  activations = [*['relu'] * len(hidden_sizes), None]
  for size, activation in zip(
    [*hidden_sizes, num_outputs], activations, strict=True
  ):
    if has_published_weights:
      _add(model, tf.keras.layers.Dense, size, activation=activation)
    else:
      model.add(tf.keras.layers.Dense(size, activation))
  return model


def cnn(
  input_shape: Sequence[int],
  num_outputs: int,
  scaling: tf.keras.layers.Layer | None = None,
  num_convolutions: int = 2,
  hidden_sizes: Sequence[int] = (384, 192),
) -> tf.keras.Model:
  """The network of the published CIFAR experiments (Acar et al., 2021).

  Convolutions are not padded: 797,962 weights for 32×32×3 and 10 outputs. An
  input is 16×16 at least.
  """
  model = _start(input_shape, scaling)
  for _ in range(num_convolutions):
    _add(model, tf.keras.layers.Conv2D, 64, kernel_size=5, activation='relu')
    model.add(tf.keras.layers.MaxPool2D())
  model.add(tf.keras.layers.Flatten())
  for size in hidden_sizes:
    _add(model, tf.keras.layers.Dense, size, activation='relu')
  _add(model, tf.keras.layers.Dense, num_outputs)
  return model


def character_lstm(
  length: int, num_characters: int, num_outputs: int
) -> tf.keras.Model:
  """The network of LEAF for the next character (Caldas et al., 2018)."""
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input([length], dtype=tf.int32),
      tf.keras.layers.Embedding(num_characters, 8),
      tf.keras.layers.LSTM(256, return_sequences=True),
      tf.keras.layers.LSTM(256),
      tf.keras.layers.Dense(num_outputs),
    ]
  )


def to_model(
  keras_model: tf.keras.Model, examples: tf.data.Dataset
) -> tff_debias.Model:
  """The classification model of a network, with the accuracy as its metric."""
  return tff_debias.from_keras(
    keras_model,
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    examples.batch(1).element_spec,
    lambda: [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
  )


def _start(
  input_shape: Sequence[int], scaling: tf.keras.layers.Layer | None
) -> tf.keras.Sequential:
  start = [tf.keras.layers.Input(input_shape), scaling]
  return tf.keras.Sequential([layer for layer in start if layer is not None])


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
