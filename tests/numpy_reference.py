"""ALGORITHMS.md in NumPy, in float64, on a network of two layers.

The functions are analytic in the weights, so that a step h i in the imaginary
direction gives their derivatives to the last digit: Im f(w + h i) / h.
"""

import numpy as np
import tensorflow as tf

from tff_debias import models

SIZES = (3, 4, 3)
SPEC = (tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int32))


def network(seed=0, **options):
  """A `Model` and its weights: 3 → 4, tanh, the feature → 3 logits."""
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((SIZES[0],)),
      tf.keras.layers.Dense(SIZES[1], 'tanh'),
      tf.keras.layers.Dense(SIZES[2]),
    ]
  )
  random = np.random.RandomState(seed)
  weights = [
    random.normal(size=w.shape).astype(np.float32)
    for w in keras_model.get_weights()
  ]
  keras_model.set_weights(weights)
  loss = tf.keras.losses.SparseCategoricalCrossentropy(True)
  return models.from_keras(keras_model, loss, SPEC, **options), weights


def batch(num_examples, labels=None, seed=0):
  """A batch of random inputs, with random labels if none are given."""
  random = np.random.RandomState(seed)
  x = random.normal(size=(num_examples, SIZES[0])).astype(np.float32)
  if labels is None:
    labels = random.randint(SIZES[-1], size=num_examples)
  return x, np.asarray(labels, np.int32)


def dataset(batches):
  """A data set of just these batches, which may be of different sizes."""
  shapes = [[None, *np.shape(part)[1:]] for part in batches[0]]
  return tf.data.Dataset.from_generator(
    lambda: iter(batches),
    output_signature=tuple(
      tf.TensorSpec(shape, part.dtype)
      for shape, part in zip(shapes, batches[0], strict=True)
    ),
  )


def derivative(function, weights):
  """The gradient of an analytic function of the weights."""
  step = 1e-30
  gradient = [np.zeros(np.shape(w)) for w in weights]
  for i, w in enumerate(weights):
    for place in np.ndindex(*np.shape(w)):
      shifted = [np.array(v, np.complex128) for v in weights]
      shifted[i][place] += step * 1j
      gradient[i][place] = function(shifted).imag / step
  return gradient


def feature(weights, x):
  return np.tanh(x @ weights[0] + weights[1])


def logits(weights, x):
  return feature(weights, x) @ weights[2] + weights[3]


def cross_entropy(scores, labels):
  """The mean over examples; 0 where there is none."""
  if not len(labels):
    return 0.0
  scores = scores - scores.real.max(axis=1, keepdims=True)
  chosen = scores[np.arange(len(labels)), labels]
  return np.mean(np.log(np.exp(scores).sum(axis=1)) - chosen)


def loss(weights, data):
  return cross_entropy(logits(weights, data[0]), data[1])


def loss_gradient(weights, data):
  """∇L, by hand and not by `derivative`, so that MAML can step along it."""
  x, labels = data
  hidden = feature(weights, x)
  scores = logits(weights, x)
  powers = np.exp(scores - scores.real.max(axis=1, keepdims=True))
  slope = powers / powers.sum(axis=1, keepdims=True)
  slope[np.arange(len(labels)), labels] -= 1
  slope = slope / len(labels)
  back = (slope @ weights[2].T) * (1 - hidden**2)
  return [x.T @ back, back.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)]


def maml_adapted(weights, support, num_steps, rate, weight_decay):
  for _ in range(num_steps):
    gradient = loss_gradient(weights, support)
    weights = [
      w - rate * (g + weight_decay * w)
      for w, g in zip(weights, gradient, strict=True)
    ]
  return weights


def maml_loss(weights, support, query, num_steps, rate, weight_decay):
  adapted = maml_adapted(weights, support, num_steps, rate, weight_decay)
  return loss(adapted, query)


def proto_scores(weights, support, x):
  """Minus the squared distances to the prototypes; very far where none is."""
  hidden = feature(weights, x)
  scores = np.full((len(x), SIZES[-1]), -1e30, hidden.dtype)
  for c in set(support[1].tolist()):
    center = feature(weights, support[0][support[1] == c]).mean(axis=0)
    scores[:, c] = -np.sum((hidden - center) ** 2, axis=1)
  return scores


def proto_counted(support, query):
  """The query's examples whose class the support has."""
  known = np.isin(query[1], support[1])
  return query[0][known], query[1][known]


def proto_loss(weights, support, query):
  x, labels = proto_counted(support, query)
  if not len(labels):
    return 0.0 * weights[0].flat[0]
  classes = sorted(set(support[1].tolist()))
  scores = proto_scores(weights, support, x)[:, classes]
  return cross_entropy(scores, np.searchsorted(classes, labels))


def clip(gradient, max_norm):
  """Returns g · min(1, max_norm / ‖g‖) and ‖g‖."""
  norm = np.sqrt(sum(np.sum(g**2) for g in gradient))
  scale = min(1, max_norm / norm) if norm else 1
  return [g * scale for g in gradient], norm
