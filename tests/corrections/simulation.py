"""Weights and local work for the tests of the corrections, in float64."""

import numpy as np
import tensorflow as tf

from tff_debias import corrections

NUM_CLIENTS = 5
SHAPES = ((2, 3), (3,), ())


def weights(random):
  return tuple(random.normal(size=shape) for shape in SHAPES)


def mean(structures):
  return tuple(
    np.mean(parts, axis=0) for parts in zip(*structures, strict=True)
  )


def constants(structure):
  return tuple(tf.constant(w, tf.float64) for w in structure)


def work(update, num_steps, learning_rate):
  """The local work of an update; its start is not used by our corrections."""
  return corrections.LocalWork((), update, num_steps, learning_rate)


def assert_close(actual, expected):
  assert len(actual) == len(expected) == len(SHAPES)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)


def assert_starts_at_zero(correction):
  weights = (tf.ones([2, 3]), tf.constant(4.0))
  state = correction.initial_state(weights)
  assert [(s.shape, s.dtype) for s in state] == [
    (w.shape, w.dtype) for w in weights
  ]
  assert not any(map(np.any, state))
