import collections
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import networks
from tff_debias import models

metrics = tf.keras.metrics
Y = networks.Y
dense = networks.dense
inputs = networks.inputs
make = networks.make
sequential = networks.sequential

_random = np.random.RandomState(0)
CLASSES = _random.randint(3, size=24).astype(np.int32)
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]
PROBABILITIES = _random.dirichlet([1.0] * 3, 24).astype(np.float32)
BINARY = (ONE_HOT[:, :1], PROBABILITIES[:, :1])
MANY = (ONE_HOT, PROBABILITIES)
SPARSE = (CLASSES, PROBABILITIES)


def hits(y, p):
  return tf.cast(y == tf.cast(tf.argmax(p, -1), y.dtype), tf.float32)


class Own(metrics.Metric):
  """A metric without sample weights, with an `if` and a comparison."""

  def __init__(self, name='own'):
    super().__init__(name=name)
    self.total = self.add_weight('total', initializer='zeros')

  def update_state(self, y, p):
    hit = hits(y, p)
    if tf.reduce_sum(hit) > 1.0:
      hit *= 2
    self.total.assign_add(tf.reduce_sum(hit))

  def result(self):
    return self.total


class Function(Own):
  @tf.function
  def update_state(self, y, p):
    super().update_state(y, p)


class Pair(metrics.Metric):
  """A metric made of others, with two results."""

  def __init__(self):
    super().__init__(name='pair')
    self.parts = [metrics.Mean(), metrics.SparseCategoricalAccuracy()]

  def update_state(self, y, p, sample_weight=None):
    self.parts[0].update_state(p[:, 0])
    self.parts[1].update_state(y, p)

  def result(self):
    return {'a': self.parts[0].result(), 'b': self.parts[1].result()}


class Tensor(metrics.MeanTensor):
  def update_state(self, y, p, sample_weight=None):
    return super().update_state(tf.reduce_mean(p, axis=0))


KINDS = {
  'accuracy': (metrics.SparseCategoricalAccuracy, SPARSE),
  'top k': (lambda: metrics.SparseTopKCategoricalAccuracy(2), SPARSE),
  'F1': (metrics.F1Score, MANY),
  'F1 macro': (lambda: metrics.F1Score(average='macro'), MANY),
  'FBeta': (lambda: metrics.FBetaScore(average='micro', beta=2.0), MANY),
  'R2': (metrics.R2Score, MANY),
  'MeanTensor': (Tensor, MANY),
  'AUC': (lambda: metrics.AUC(num_thresholds=50), BINARY),
  'AUC of labels': (lambda: metrics.AUC(multi_label=True), MANY),
  'recall': (lambda: metrics.Recall(top_k=2, class_id=1), MANY),
  'precision': (lambda: metrics.PrecisionAtRecall(0.5), BINARY),
  'IoU': (lambda: metrics.OneHotMeanIoU(3), MANY),
  'RMSE': (metrics.RootMeanSquaredError, MANY),
  'cosine': (metrics.CosineSimilarity, MANY),
  'relative': (
    lambda: metrics.MeanRelativeError(normalizer=[1.0, 2.0, 3.0]),
    MANY,
  ),
  'wrapper': (lambda: metrics.MeanMetricWrapper(hits, 'hits'), SPARSE),
  'own': (Own, SPARSE),
  'tf.function': (Function, SPARSE),
  'pair': (Pair, SPARSE),
}


def spec_of(array):
  return tf.TensorSpec([None, *array.shape[1:]], array.dtype)


def update(model, state, labels, predictions):
  output = types.SimpleNamespace(predictions=predictions)
  return model.metrics.update(state, labels, output)


@pytest.mark.usefixtures('runtime')
def test_kinds_of_metrics():
  parts = slice(0, 10), slice(10, None)
  groups = []
  for data in (SPARSE, MANY, BINARY):
    builders = {n: build for n, (build, d) in KINDS.items() if d is data}
    width = data[1].shape[1]
    model = models.from_keras(
      sequential(dense(width), shape=(width,)),
      lambda y, p: tf.reduce_sum(p),
      (spec_of(data[1]), spec_of(data[0])),
      builders,
    )
    groups.append((model, data, builders))

  @models.computation(
    tff.types.tensorflow_to_type(
      [tuple(map(spec_of, data)) for _, data, _ in groups]
    )
  )
  def compute(args):
    values = []
    for (model, _, _), (labels, predictions) in zip(groups, args, strict=True):
      state = model.metrics.initialize()
      for part in parts:
        state = update(model, state, labels[part], predictions[part])
      values.append(model.metrics.finalize(state))
    return values

  found = compute([data for _, data, _ in groups])
  for (_, (labels, predictions), builders), values in zip(
    groups, found, strict=True
  ):
    for name, build in builders.items():
      own = build()
      for part in parts:
        own.update_state(labels[part], predictions[part])
      value, expected = map(tf.nest.flatten, (values[name], own.result()))
      assert np.abs(np.concatenate(expected, axis=None)).max() > 0, name
      for v, e in zip(value, expected, strict=True):
        np.testing.assert_allclose(v, e, rtol=1e-6, err_msg=name)


def two_metrics():
  return [
    metrics.MeanSquaredError('square'),
    metrics.MeanAbsoluteError('absolute'),
  ]


@pytest.mark.parametrize(
  'given, names',
  [
    (None, []),
    (list, []),
    (two_metrics, ['square', 'absolute']),
    (lambda: tuple(two_metrics()), ['square', 'absolute']),
    (lambda: dict(zip('ab', two_metrics(), strict=True)), ['a', 'b']),
    (collections.OrderedDict(a=metrics.MeanSquaredError), ['a']),
    (metrics.MeanSquaredError, ['mean_squared_error']),
    (lambda: metrics.MeanSquaredError('square'), ['square']),
  ],
)
def test_the_metrics(given, names):
  model = make(sequential(dense(2)), given)
  state = model.metrics.initialize()
  # TFF's secure sums take a tuple for bounds.
  assert all(isinstance(part, list) for part in state.values())
  batches = [(inputs(Y, n), inputs(Y, n, seed=1)) for n in (4, 1)]
  for labels, predictions in batches:
    state = update(model, state, labels, predictions)
  values = model.metrics.finalize(state)
  assert list(values) == names
  labels, predictions = (np.concatenate(p) for p in zip(*batches, strict=True))
  expected = (
    np.mean((labels - predictions) ** 2),
    np.mean(np.abs(labels - predictions)),
  )
  for value, e in zip(values.values(), expected, strict=False):
    np.testing.assert_allclose(value, e, rtol=1e-5)


@pytest.mark.parametrize(
  'loss',
  [
    networks.CROSS_ENTROPY,
    networks.each,
    # A value for each logit, of which a token has three.
    lambda y, p: tf.stack(3 * [networks.each(y, p)], -1),
  ],
)
def test_padding_counts_neither_in_the_loss_nor_in_a_metric(loss):
  build, spec, _, y = networks.KINDS['padded']
  keras_model, x = build(), inputs(spec)
  model = models.from_keras(
    keras_model,
    loss,
    (spec, spec),
    lambda: [metrics.SparseCategoricalAccuracy('a')],
  )

  @tf.function
  def compute():
    outputs = model.apply(model.initial_weights, tf.constant(x), False)
    state = update(model, model.metrics.initialize(), y, outputs.predictions)
    value = model.loss(tf.constant(y), outputs.predictions)
    return value, model.metrics.finalize(state)['a']

  keras_model.compile('sgd', networks.each, weighted_metrics=['accuracy'])
  expected = keras_model.evaluate(x, y, verbose=0)
  assert 0 < np.sum(x == 0) < x.size
  np.testing.assert_allclose(compute(), expected, rtol=1e-5)


def test_a_metric_without_sample_weights_is_refused_where_padding_is():
  build, spec, _, _ = networks.KINDS['padded']
  model = models.from_keras(build(), networks.each, (spec, spec), Own)

  def count(x):
    outputs = model.apply(model.initial_weights, x, False)
    update(model, model.metrics.initialize(), x, outputs.predictions)

  with pytest.raises(ValueError, match="'own' must take sample_weight"):
    models.trace(count, spec)


class InBranch(Own):
  def update_state(self, y, p):
    if tf.reduce_sum(p) > 0:
      self.total.assign_add(1.0)


def test_a_metric_that_assigns_in_a_branch_is_refused():
  model = make(sequential(dense(2)), InBranch)
  with pytest.raises(ValueError, match='total.*use tf.where'):
    models.trace(lambda y: update(model, model.metrics.initialize(), y, y), Y)


@pytest.mark.parametrize(
  'given', ['mse', ['mse'], two_metrics(), two_metrics()[0], lambda: ['mse']]
)
def test_metrics_of_a_wrong_type(given):
  with pytest.raises(TypeError, match='metrics must'):
    make(sequential(dense(2)), given)


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (['a', 'a'], 'different names'),
    (['loss'], 'not be named loss: that is'),
    (['num_examples'], 'not be named num_examples: that is'),
    (['is_included'], 'not be named is_included: that is'),
  ],
)
def test_names_of_metrics_that_are_refused(names, message):
  with pytest.raises(ValueError, match=message):
    make(
      sequential(dense(2)),
      lambda: [metrics.MeanSquaredError(name) for name in names],
    )
