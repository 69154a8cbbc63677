import collections

import numpy as np
import pytest
import reference
import small_models
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import models
from tff_debias import personalizations

PROTO = personalizations.Proto()
LOSS = tf.keras.losses.SparseCategoricalCrossentropy(True)


def constants(weights):
  return models.ModelWeights(tuple(map(tf.constant, weights)), ())


def meta_loss(model, weights, support, query, proto=PROTO):
  """The result and its gradient, zero where there is no connection."""

  @tf.function
  def compute(weights):
    with tf.GradientTape() as tape:
      tape.watch(weights.trainable)
      result = proto.meta_loss(model, weights, (support, query), 0.0)
    return result, tape.gradient(
      result.loss, weights.trainable, unconnected_gradients='zero'
    )

  return compute(constants(weights))


def identity_model(num_features, num_classes=3, spec=None, **options):
  """A model whose feature is its input, times a matrix that can change."""
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((num_features,)),
      tf.keras.layers.Dense(
        num_features, use_bias=False, kernel_initializer='identity'
      ),
      tf.keras.layers.Dense(num_classes),
    ]
  )
  x_spec = tf.TensorSpec([None, num_features])
  y_spec = spec or tf.TensorSpec([None], tf.int32)
  return models.from_keras(keras_model, LOSS, (x_spec, y_spec), **options)


def column(values):
  return np.array(values, np.float32)[:, np.newaxis]


def labels(*values):
  return np.array(values, np.int32)


def personalize(model, dataset, proto=PROTO):
  weights = constants(model.initial_weights.trainable)
  return tf.function(lambda: proto.personalize(model, weights, dataset, 10.0))()


def evaluate(model, prototypes, batch, proto=PROTO):
  return tf.function(lambda: proto.evaluate(model, prototypes, batch))()


@pytest.mark.parametrize(
  'support_labels, query_labels',
  [
    ([0, 1, 2, 2, 0], [2, 1, 0, 1]),  # all classes
    ([0, 0, 2, 2, 0], [2, 1, 0, 1]),  # half of the query counts
    ([0, 0, 2, 2, 0], [2, 2, 0, 2]),  # a class that nobody has
    ([1, 1, 1, 1, 1], [1, 1, 2, 0]),  # one class only: nothing to tell apart
    ([2], [2]),
    ([2, 1], [1]),
  ],
)
def test_the_loss_and_its_gradient(support_labels, query_labels):
  model, weights = small_models.network()
  support = small_models.batch(len(support_labels), support_labels, seed=1)
  query = small_models.batch(len(query_labels), query_labels, seed=2)
  result, gradient = meta_loss(model, weights, support, query)
  np.testing.assert_allclose(
    result.loss,
    reference.proto_loss(weights, support, query),
    rtol=1e-5,
    atol=1e-7,
  )
  expected = reference.derivative(
    lambda ws: reference.proto_loss(ws, support, query), weights
  )
  for g, e in zip(gradient, expected, strict=True):
    np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)
  # The last layer has no data gradient.
  assert not np.any(gradient[2]) and not np.any(gradient[3])
  # Only what counts goes into the metrics.
  x, counted = reference.proto_counted(support, query)
  np.testing.assert_array_equal(result.labels, counted)
  assert result.num_examples == len(counted)
  known = sorted(set(support_labels))
  np.testing.assert_allclose(
    tf.gather(result.predictions, known, axis=1),
    reference.proto_scores(weights, support, x)[:, known],
    atol=1e-5,
  )
  assert np.isin(np.argmax(result.predictions, axis=1), known).all()


def test_the_names_of_the_classes_do_not_matter():
  """So ALID, where every device renames its classes, is ACID to prototypes."""
  model, weights = small_models.network()
  names = np.array([2, 0, 1])
  of_names = []
  for rename in (lambda y: y, lambda y: names[y]):
    support = small_models.batch(5, rename(labels(0, 1, 2, 2, 0)), seed=1)
    query = small_models.batch(4, rename(labels(2, 1, 0, 1)), seed=2)
    of_names.append(meta_loss(model, weights, support, query))
  (result, gradient), (renamed, of_renamed) = of_names
  np.testing.assert_allclose(renamed.loss, result.loss, rtol=1e-6)
  for g, r in zip(gradient, of_renamed, strict=True):
    np.testing.assert_allclose(r, g, rtol=1e-5, atol=1e-6)
  logits = tf.gather(renamed.predictions, names, axis=1)
  np.testing.assert_allclose(logits, result.predictions, rtol=1e-6)


@pytest.mark.parametrize('query_labels', [[0, 0, 2], [0]])
def test_a_support_without_any_class_of_the_query(query_labels):
  model, weights = small_models.network()
  support = small_models.batch(2, [1, 1])
  query = small_models.batch(len(query_labels), query_labels)
  result, gradient = meta_loss(model, weights, support, query)
  assert result.loss == 0
  assert result.num_examples == 0
  assert result.predictions.shape == (0, 3)
  for g in gradient:
    np.testing.assert_array_equal(g, 0)


def test_distances_are_exact_far_from_the_origin():
  # The square of a difference and not the difference of squares.
  model = identity_model(1)
  support = column([5000.0, 5001.0]), labels(0, 1)
  query = column([5000.25]), labels(0)
  result, _ = meta_loss(model, model.initial_weights.trainable, support, query)
  np.testing.assert_allclose(result.predictions[0, :2], [-0.0625, -0.5625])


def test_features_far_apart_do_not_overflow():
  model = identity_model(1)
  support = column([-1e10, 0.0, 1e10]), labels(0, 1, 2)
  query = column([1e10, 1.0]), labels(2, 1)
  result, gradient = meta_loss(
    model, model.initial_weights.trainable, support, query
  )
  assert result.loss == 0
  assert np.isfinite(gradient[0]).all()
  np.testing.assert_array_equal(np.argmax(result.predictions, axis=1), [2, 1])


@pytest.mark.parametrize('bad', [3, -1])
@pytest.mark.parametrize('where', ['support', 'query'])
def test_a_label_out_of_range_is_an_error(where, bad):
  model, weights = small_models.network()
  good, wrong = small_models.batch(2, [0, 1]), small_models.batch(2, [0, bad])
  batches = (wrong, good) if where == 'support' else (good, wrong)
  with pytest.raises(tf.errors.InvalidArgumentError):
    meta_loss(model, weights, *batches)


@pytest.mark.parametrize('dtype', [tf.uint8, tf.int16, tf.int64])
def test_labels_of_any_integer_type(dtype):
  model = identity_model(1, spec=tf.TensorSpec([None], dtype))
  PROTO.check_model(model)
  support = column([0.0, 1.0]), np.array([0, 2], dtype.as_numpy_dtype)
  query = column([0.25]), np.array([2], dtype.as_numpy_dtype)
  result, _ = meta_loss(model, model.initial_weights.trainable, support, query)
  # ln(1 + e^(0.5625 - 0.0625))
  np.testing.assert_allclose(result.loss, np.log1p(np.exp(0.5)), rtol=1e-5)


def test_the_test_takes_the_prototypes_of_all_training_data():
  model, weights = small_models.network()
  batches = [
    small_models.batch(5, [0, 0, 2, 0, 0], seed=5),
    small_models.batch(3, [2, 2, 2], seed=3),
    small_models.batch(1, [0], seed=1),
  ]
  prototypes = personalize(model, small_models.dataset(batches))
  whole = tuple(np.concatenate(part) for part in zip(*batches, strict=True))
  np.testing.assert_array_equal(prototypes.known, [True, False, True])
  for c in (0, 2):
    members = whole[0][whole[1] == c]
    np.testing.assert_allclose(
      prototypes.centers[c],
      reference.feature(weights, members).mean(axis=0),
      atol=1e-6,
    )
  for w, expected in zip(prototypes.weights.trainable, weights, strict=True):
    np.testing.assert_array_equal(w, expected)
  for test_labels in ([0, 2, 2, 0], [2, 1], [1, 1, 0, 2, 1]):
    batch = small_models.batch(len(test_labels), test_labels, seed=9)
    result = evaluate(model, prototypes, batch)
    _, counted = reference.proto_counted(whole, batch)
    np.testing.assert_allclose(
      result.loss, reference.proto_loss(weights, whole, batch), rtol=1e-5
    )
    assert result.num_losses == len(counted)
    np.testing.assert_array_equal(result.labels, batch[1])
    np.testing.assert_array_equal(
      np.argmax(result.predictions, axis=1),
      np.argmax(reference.proto_scores(weights, whole, batch[0]), axis=1),
    )


def test_without_training_data_nothing_counts():
  model, _ = small_models.network()
  empty = small_models.dataset([small_models.batch(2)]).take(0)
  prototypes = personalize(model, empty)
  assert not np.any(prototypes.known)
  result = evaluate(model, prototypes, small_models.batch(3))
  assert result.loss == 0
  assert result.num_losses == 0


def test_a_feature_of_several_dimensions():
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((2, 2, 1)),
      tf.keras.layers.Conv2D(
        1,
        1,
        use_bias=False,
        kernel_initializer=tf.keras.initializers.Constant(2),
        name='twice',
      ),
      tf.keras.layers.Conv2D(1, 1, name='conv'),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(2),
    ]
  )
  model = models.from_keras(
    keras_model,
    LOSS,
    (tf.TensorSpec([None, 2, 2, 1]), tf.TensorSpec([None], tf.int32)),
    feature_layer='twice',
  )
  PROTO.check_model(model)
  x = np.random.RandomState(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
  result, gradient = meta_loss(
    model,
    model.initial_weights.trainable,
    (x[:2], labels(0, 1)),
    (x[2:], labels(1)),
  )
  squares = [np.sum((x[2] - x[i]) ** 2) for i in range(2)]
  expected = [-4 * square for square in squares]
  np.testing.assert_allclose(result.predictions[0], expected, rtol=1e-5)
  # The loss ln(1 + e^(k² d)) has the derivative 2 k d / (1 + e^(-k² d)).
  d = squares[1] - squares[0]
  np.testing.assert_allclose(
    np.squeeze(gradient[0]), 4 * d / (1 + np.exp(-4 * d)), rtol=1e-4
  )
  # No other layer makes the feature.
  for g in gradient[1:]:
    np.testing.assert_array_equal(g, 0)


def test_num_classes_can_differ_from_the_outputs():
  proto = personalizations.Proto(num_classes=5)
  model = identity_model(1, num_classes=2)
  proto.check_model(model)
  support = column([0.0, 1.0]), labels(4, 0)
  query = column([0.25]), labels(4)
  result, _ = meta_loss(
    model, model.initial_weights.trainable, support, query, proto
  )
  assert result.predictions.shape == (1, 5)
  np.testing.assert_allclose(result.loss, np.log1p(np.exp(-0.5)), rtol=1e-5)


@pytest.mark.parametrize(
  'spec',
  [
    tf.TensorSpec([None]),
    tf.TensorSpec([None, 1], tf.int32),
    tf.TensorSpec([None], tf.string),
  ],
)
def test_labels_must_be_one_integer_each(spec):
  with pytest.raises(ValueError, match='one integer label for each example'):
    PROTO.check_model(identity_model(2, spec=spec))


def test_a_feature_must_be_of_fixed_size():
  x = tf.keras.layers.Input((None, 3))
  y = tf.keras.layers.GlobalAveragePooling1D()(tf.keras.layers.Dense(2)(x))
  spec = (tf.TensorSpec([None, None, 3]), tf.TensorSpec([None], tf.int32))
  model = models.from_keras(tf.keras.Model(x, y), LOSS, spec)
  with pytest.raises(ValueError, match='feature of fixed size'):
    PROTO.check_model(model)


def test_the_number_of_classes_must_be_known():
  x = tf.keras.layers.Input((3,))
  hidden = tf.keras.layers.Dense(3, 'tanh')(x)
  outputs = collections.OrderedDict(
    a=tf.keras.layers.Dense(2)(hidden), b=tf.keras.layers.Dense(4)(hidden)
  )
  model = models.from_keras(
    tf.keras.Model(x, outputs),
    lambda y, outputs: LOSS(y, outputs['a']),
    small_models.CLASSIFIER_SPEC,
  )
  with pytest.raises(ValueError, match='give Proto its num_classes'):
    PROTO.check_model(model)
  personalizations.Proto(num_classes=2).check_model(model)


@pytest.mark.parametrize(
  'stack, feature_layer',
  [
    ([tf.keras.layers.Dense(3)], None),  # an embedding: the feature is x
    ([tf.keras.layers.Flatten(name='raw'), tf.keras.layers.Dense(3)], 'raw'),
    (
      [tf.keras.layers.Dense(4, trainable=False), tf.keras.layers.Dense(3)],
      None,
    ),
  ],
)
def test_a_feature_that_nothing_trains_is_refused(stack, feature_layer):
  keras_model = tf.keras.Sequential([tf.keras.layers.Input((3,)), *stack])
  model = models.from_keras(
    keras_model, LOSS, small_models.CLASSIFIER_SPEC, feature_layer=feature_layer
  )
  with pytest.raises(ValueError, match='no trainable weight.*feature_layer'):
    PROTO.check_model(model)
  # The output of the last layer is one that can be trained.
  last = models.from_keras(
    keras_model,
    LOSS,
    small_models.CLASSIFIER_SPEC,
    feature_layer=stack[-1].name,
  )
  PROTO.check_model(last)


def test_one_logit_for_two_classes_is_refused():
  with pytest.raises(ValueError, match='one logit.*num_classes=2'):
    PROTO.check_model(identity_model(3, num_classes=1))
  personalizations.Proto(2).check_model(identity_model(3, num_classes=1))
  with pytest.raises(ValueError, match='at least 2, got 1'):
    personalizations.Proto(1)


def test_a_functional_model_needs_a_feature():
  functional_model = tff.learning.models.FunctionalModel(
    initial_weights=((np.eye(3, dtype=np.float32),), ()),
    predict_on_batch_fn=tf.function(
      lambda weights, x, training: x @ weights[0][0]
    ),
    loss_fn=lambda output, label, sample_weight=None: LOSS(label, output),
    input_spec=small_models.CLASSIFIER_SPEC,
  )
  with pytest.raises(ValueError, match='feature_fn'):
    PROTO.check_model(models.from_functional(functional_model))
  PROTO.check_model(
    models.from_functional(
      functional_model, lambda weights, x, training: 2 * x @ weights[0][0]
    )
  )
