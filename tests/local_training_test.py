import functools

import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf

from tff_debias import corrections
from tff_debias import local_training
from tff_debias import models
from tff_debias import personalizations

PERSONALIZATIONS = {
  'none': personalizations.NoPersonalization(),
  'maml': personalizations.Maml(num_steps=2, learning_rate=0.3),
  'proto': personalizations.Proto(),
}
CORRECTIONS = {
  'none': corrections.NoCorrection(),
  'dyn': corrections.Dyn(alpha=0.4),
  'scaf': corrections.Scaf(),
}
RATE, WEIGHT_DECAY = 0.5, 0.1
MAML_SETTINGS = (2, 0.3, WEIGHT_DECAY)


def random_weights(weights, seed, scale=0.3):
  random = np.random.RandomState(seed)
  return tuple(
    (scale * random.normal(size=np.shape(w))).astype(np.float32)
    for w in weights
  )


def train(model, personalization, correction, dataset, *args, **kwargs):
  return trainer(model, personalization, correction, *args, **kwargs)(dataset)


def trainer(
  model,
  personalization,
  correction,
  sent=(),
  kept=(),
  rate=RATE,
  weight_decay=WEIGHT_DECAY,
  max_grad_norm=10.0,
  start=None,
):
  """Local training, as a function of the data set."""
  start = tf.nest.map_structure(tf.constant, start or model.initial_weights)
  settings = local_training.Hyperparameters(
    *(tf.constant(value) for value in (rate, weight_decay, max_grad_norm))
  )
  return tf.function(
    lambda dataset: local_training.train(
      model, personalization, correction, settings, start, sent, kept, dataset
    ),
    autograph=False,
  )


def one_weight_model(**options):
  """y = w x, with w = 1, and the squared error."""
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((1,)),
      tf.keras.layers.Dense(1, use_bias=False, kernel_initializer='ones'),
    ]
  )
  return models.from_keras(
    keras_model,
    tf.keras.losses.MeanSquaredError(),
    (tf.TensorSpec([None, 1]), tf.TensorSpec([None, 1])),
    **options,
  )


def pairs(*batches):
  """A data set of batches of (x, y), all of them columns of numbers."""
  return reference.dataset(
    [
      tuple(np.array(part, np.float32)[:, np.newaxis] for part in batch)
      for batch in batches
    ]
  )


def plain_loop(
  personalization, correction, weights, sent, kept, batches, max_norm
):
  """ALGORITHMS.md, one step after the other.

  Returns:
    The result, and for each step its number of examples, its labels, its
    predictions, and the norm of the gradient before the clipping.
  """
  start = weights = [np.array(w, np.float64) for w in weights]
  steps, loss_sum = [], 0.0
  size = 1 if personalization == 'none' else 2
  for first in range(0, len(batches) - size + 1, size):
    support, query = batches[first], batches[first + size - 1]
    counted = query
    if personalization == 'maml':
      loss = functools.partial(
        lambda ws, s, q: reference.maml_loss(ws, s, q, *MAML_SETTINGS),
        s=support,
        q=query,
      )
      adapted = reference.maml_adapted(weights, support, *MAML_SETTINGS)
      scores = reference.logits(adapted, query[0])
    elif personalization == 'proto':
      loss = functools.partial(
        reference.proto_loss, support=support, query=query
      )
      counted = reference.proto_counted(support, query)
      scores = reference.proto_scores(weights, support, counted[0])
    else:
      loss = functools.partial(reference.loss, data=query)
      scores = reference.logits(weights, query[0])
    gradient = reference.derivative(loss, weights)
    if correction == 'dyn':
      gradient = [
        g - lam + 0.4 * (w - w_t)
        for g, lam, w, w_t in zip(gradient, kept, weights, start, strict=True)
      ]
    elif correction == 'scaf':
      gradient = [
        g + c - c_i for g, c, c_i in zip(gradient, sent, kept, strict=True)
      ]
    clipped, norm = reference.clip(gradient, max_norm)
    loss_sum += np.real(loss(weights)) * len(counted[1])
    steps.append((counted[1], scores, norm))
    weights = [
      w - RATE * (g + WEIGHT_DECAY * w)
      for w, g in zip(weights, clipped, strict=True)
    ]
  update = [w - w_t for w, w_t in zip(weights, start, strict=True)]
  new_kept, message = kept, ()
  if correction == 'dyn':
    new_kept = [lam - 0.4 * u for lam, u in zip(kept, update, strict=True)]
  elif correction == 'scaf':
    new_kept = [
      c_i - c - u / (len(steps) * RATE)
      for c_i, c, u in zip(kept, sent, update, strict=True)
    ]
    message = [new - old for new, old in zip(new_kept, kept, strict=True)]
  return (update, new_kept, message, loss_sum), steps


def assert_close(actual, expected):
  assert len(actual) == len(expected)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5)


# Seven batches of different sizes, so that one is left over by the pairs. Not
# all of the supports have all of the classes.
BATCHES = [
  reference.batch(5, [0, 0, 1, 2, 2], seed=1),
  reference.batch(5, [1, 0, 1, 2, 0], seed=2),
  reference.batch(4, [0, 0, 2, 2], seed=3),
  reference.batch(5, [1, 0, 1, 2, 0], seed=4),
  reference.batch(2, [1, 1], seed=5),
  reference.batch(3, [0, 2, 0], seed=6),
  reference.batch(1, [1], seed=7),
]


@pytest.mark.parametrize('correction', CORRECTIONS)
@pytest.mark.parametrize('personalization', PERSONALIZATIONS)
def test_against_a_plain_loop(personalization, correction):
  model, weights = reference.network(
    metrics=lambda: [
      tf.keras.metrics.SparseCategoricalAccuracy('accuracy'),
      tf.keras.metrics.SparseTopKCategoricalAccuracy(2, 'top_2'),
    ]
  )
  sent = kept = ()
  if correction != 'none':
    kept = random_weights(weights, seed=1)
  if correction == 'scaf':
    sent = random_weights(weights, seed=2)
  expect = functools.partial(
    plain_loop, personalization, correction, weights, sent, kept, BATCHES
  )
  # A bound that clips some of the steps, but not all of them.
  max_norm = np.mean([norm for _, _, norm in expect(float('inf'))[1]])
  (update, new_kept, message, loss_sum), steps = expect(max_norm)
  norms = [norm for _, _, norm in steps]
  assert min(norms) < max_norm < max(norms)
  result = train(
    model,
    PERSONALIZATIONS[personalization],
    CORRECTIONS[correction],
    reference.dataset(BATCHES),
    sent,
    kept,
    max_grad_norm=float(max_norm),
  )
  assert result.counts
  assert_close(result.update, update)
  assert_close(result.device_state, new_kept)
  assert_close(result.message, message)
  np.testing.assert_allclose(result.loss_sum, loss_sum, rtol=1e-5)
  assert result.num_examples == sum(len(labels) for labels, _, _ in steps)
  # The metrics of what every step predicted before it changed the weights.
  accuracy = tf.keras.metrics.SparseCategoricalAccuracy()
  top_2 = tf.keras.metrics.SparseTopKCategoricalAccuracy(2)
  for labels, scores, _ in steps:
    if len(labels):
      accuracy.update_state(labels, scores)
      top_2.update_state(labels, scores)
  metrics = model.metrics.finalize(result.metrics)
  assert list(metrics) == ['accuracy', 'top_2']
  np.testing.assert_allclose(metrics['accuracy'], accuracy.result())
  np.testing.assert_allclose(metrics['top_2'], top_2.result())


def test_a_step_by_hand():
  # w = 1, and ∇ of the mean of (w x)² is 2 · (1 + 9) / 2 · w = 10. The term
  # makes it 40, which is clipped to 8. Weight decay comes after: 8 + 0.5.
  result = train(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['scaf'],
    pairs(([1.0, 3.0], [0.0, 0.0])),
    sent=(tf.constant([[20.0]]),),
    kept=(tf.constant([[-10.0]]),),
    rate=0.1,
    weight_decay=0.5,
    max_grad_norm=8.0,
  )
  np.testing.assert_allclose(result.update[0], [[-0.85]], rtol=1e-6)
  # c_i - c + (w^t - w_i) / (1 · 0.1), and what changed.
  np.testing.assert_allclose(result.device_state[0], [[-21.5]], rtol=1e-6)
  np.testing.assert_allclose(result.message[0], [[-11.5]], rtol=1e-6)
  np.testing.assert_allclose(result.loss_sum, 10.0)
  assert result.num_examples == 2


@pytest.mark.parametrize('max_grad_norm', [float('inf'), 1e6])
def test_a_large_bound_changes_nothing(max_grad_norm):
  # ∇ = 2 · 100², far above 10.
  result = train(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['none'],
    pairs(([100.0], [0.0])),
    rate=1e-5,
    weight_decay=0.0,
    max_grad_norm=max_grad_norm,
  )
  assert result.counts
  np.testing.assert_allclose(result.update[0], [[-0.2]], rtol=1e-6)


def test_no_gradient_at_all_is_not_divided_by():
  result = train(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['none'],
    pairs(([0.0], [0.0])),
    rate=0.1,
    weight_decay=0.5,
  )
  assert result.counts
  np.testing.assert_allclose(result.update[0], [[-0.05]], rtol=1e-6)


@pytest.mark.parametrize('personalization, size', [('none', 1), ('maml', 2)])
def test_the_number_of_steps(personalization, size):
  # All is 0, so that only the weight decay moves anything.
  batches = [([0.0] * (i + 1), [0.0] * (i + 1)) for i in range(5)]
  run = trainer(
    one_weight_model(),
    PERSONALIZATIONS[personalization],
    CORRECTIONS['none'],
    rate=0.5,
    weight_decay=0.5,
  )
  for num_batches in range(6):
    result = run(pairs(*batches).take(num_batches))
    num_steps = num_batches // size
    np.testing.assert_allclose(
      result.update[0], [[0.75**num_steps - 1]], rtol=1e-6, atol=1e-9
    )
    assert result.counts == (num_steps > 0)
    # The last batch of every step is the query.
    assert result.num_examples == sum(size * (i + 1) for i in range(num_steps))


def test_support_and_query_are_not_mixed_up():
  # Support: ∇ at 1 is 2, so that u = 1 - 0.25 · 2. Query: x = 2, y = 3, and the
  # loss (2 u - 3)² = 4, with the derivative 2 · 2 · (2 u - 3) · du/dw = -4.
  result = train(
    one_weight_model(),
    personalizations.Maml(1, 0.25),
    CORRECTIONS['none'],
    pairs(([1.0], [0.0]), ([2.0], [3.0])),
    rate=0.1,
    weight_decay=0.0,
  )
  np.testing.assert_allclose(result.loss_sum, 4.0)
  np.testing.assert_allclose(result.update[0], [[0.4]], rtol=1e-6)


@pytest.mark.parametrize('correction', CORRECTIONS)
def test_a_device_without_a_step_does_not_count(correction):
  model, weights = reference.network(
    metrics=tf.keras.metrics.SparseCategoricalAccuracy
  )
  kept = () if correction == 'none' else random_weights(weights, seed=1)
  sent = random_weights(weights, seed=2) if correction == 'scaf' else ()
  run = trainer(
    model, PERSONALIZATIONS['maml'], CORRECTIONS[correction], sent, kept
  )
  for num_batches in (0, 1):
    result = run(reference.dataset(BATCHES).take(num_batches))
    assert_does_not_count(result, kept)


def assert_does_not_count(result, kept):
  assert not result.counts
  for zero in tf.nest.flatten(
    (
      result.update,
      result.message,
      result.loss_sum,
      result.num_examples,
      result.metrics,
    )
  ):
    np.testing.assert_array_equal(zero, np.zeros_like(zero))
  assert len(result.device_state) == len(kept)
  for actual, expected in zip(result.device_state, kept, strict=True):
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
  'personalization, correction',
  [('none', 'none'), ('none', 'scaf'), ('maml', 'dyn'), ('proto', 'scaf')],
)
def test_a_device_that_is_not_finite_does_not_count(
  personalization, correction
):
  model, weights = reference.network(
    metrics=tf.keras.metrics.SparseCategoricalAccuracy
  )
  kept = () if correction == 'none' else random_weights(weights, seed=1)
  sent = random_weights(weights, seed=2) if correction == 'scaf' else ()
  run = trainer(
    model,
    PERSONALIZATIONS[personalization],
    CORRECTIONS[correction],
    sent,
    kept,
  )
  assert run(reference.dataset(BATCHES)).counts
  for bad in (float('nan'), float('inf')):
    batches = [(x.copy(), y) for x, y in BATCHES]
    # One example, in the query of the second step. The difference of two
    # infinities is no number.
    batches[3][0][0] = [bad, -bad, bad]
    assert_does_not_count(run(reference.dataset(batches)), kept)


def test_what_is_left_over_may_be_anything():
  model, _ = reference.network()
  run = trainer(model, PERSONALIZATIONS['maml'], CORRECTIONS['none'])
  expected = run(reference.dataset(BATCHES[:2]))
  left_over = (np.full_like(BATCHES[2][0], np.nan), BATCHES[2][1])
  result = run(reference.dataset([*BATCHES[:2], left_over]))
  assert result.counts
  assert_close(result.update, expected.update)
  assert result.num_examples == expected.num_examples == 5


def test_a_device_that_diverges_does_not_count():
  kept = (np.array([[3.0]], np.float32),)
  result = train(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['dyn'],
    pairs(*[([1.0], [0.0])] * 60),
    kept=kept,
    rate=10.0,
    max_grad_norm=float('inf'),
  )
  assert_does_not_count(result, kept)


def test_an_overflowing_loss_does_not_count():
  # The loss is 10^40, which is not finite, its derivative only -20.
  result = train(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['none'],
    pairs(([1.0], [0.0]), ([1e-19], [1e20])),
  )
  assert_does_not_count(result, ())


def test_the_rate_of_the_round_is_used():
  # λ does not know the rate, c_i must undo it.
  for rate in (0.01, 0.1):
    for name, expected in (('dyn', 0.4 * 2 * rate), ('scaf', 2.0)):
      kept = (tf.zeros([1, 1]),)
      result = train(
        one_weight_model(),
        PERSONALIZATIONS['none'],
        CORRECTIONS[name],
        pairs(([1.0], [0.0])),
        sent=kept if name == 'scaf' else (),
        kept=kept,
        rate=rate,
        weight_decay=0.0,
      )
      np.testing.assert_allclose(
        result.device_state[0], [[expected]], rtol=1e-5
      )


def test_batches_that_are_mappings():
  model, weights = reference.network()
  named = models.Model(
    model.initial_weights,
    dict(zip('xy', reference.SPEC, strict=True)),
    model.apply,
    model.loss,
    model.metrics,
  )
  dataset = reference.dataset(BATCHES)
  results = [
    train(m, PERSONALIZATIONS['proto'], CORRECTIONS['none'], d)
    for m, d in (
      (model, dataset),
      (named, dataset.map(lambda x, y: {'y': y, 'x': x})),
    )
  ]
  assert_close(results[1].update, results[0].update)
  assert results[1].loss_sum > 0


def test_frozen_weights_stay():
  frozen = tf.keras.layers.Dense(
    1, use_bias=False, kernel_initializer='ones', trainable=False
  )
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((1,)),
      frozen,
      tf.keras.layers.Dense(1, use_bias=False, kernel_initializer='ones'),
    ]
  )
  model = models.from_keras(
    keras_model,
    tf.keras.losses.MeanSquaredError(),
    (tf.TensorSpec([None, 1]), tf.TensorSpec([None, 1])),
  )
  start = models.ModelWeights(
    (np.array([[1.0]], np.float32),), (np.array([[3.0]], np.float32),)
  )
  result = train(
    model,
    PERSONALIZATIONS['none'],
    CORRECTIONS['none'],
    pairs(([1.0], [0.0])),
    rate=0.01,
    weight_decay=0.0,
    max_grad_norm=float('inf'),
    start=start,
  )
  # (3 w)² has the derivative 18 w.
  assert len(result.update) == 1
  np.testing.assert_allclose(result.update[0], [[-0.18]], rtol=1e-5)


@pytest.mark.parametrize('correction', ['none', 'dyn'])
def test_an_embedding_is_clipped_like_any_layer(correction):
  # Its gradient is a list of rows, some more than once.
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((4,), dtype=tf.int32),
      tf.keras.layers.Embedding(5, 2, embeddings_initializer='ones'),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(1, use_bias=False, kernel_initializer='ones'),
    ]
  )
  model = models.from_keras(
    keras_model,
    tf.keras.losses.MeanSquaredError(),
    (tf.TensorSpec([None, 4], tf.int32), tf.TensorSpec([None, 1])),
  )
  weights = model.initial_weights.trainable
  kept = () if correction == 'none' else tuple(map(np.zeros_like, weights))
  result = train(
    model,
    PERSONALIZATIONS['none'],
    CORRECTIONS[correction],
    tf.data.Dataset.from_tensors((np.zeros((1, 4), np.int32), [[0.0]])),
    kept=kept,
    rate=1.0,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  # ∇ of (Σ_j e_j · k_j)² at ones: 16 for an entry of k, 64 for an entry of the
  # row of the embedding that all four have.
  gradient = [np.zeros((5, 2)), np.full((8, 1), 16.0)]
  gradient[0][0] = 64
  assert_close(result.update, [-g for g in reference.clip(gradient, 1.0)[0]])


def test_second_derivatives_of_a_convolution():
  random = np.random.RandomState(0)
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.Input((6, 6, 2)),
      tf.keras.layers.Conv2D(3, 3, activation='relu'),
      tf.keras.layers.MaxPool2D(2),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(3),
    ]
  )
  loss_fn = tf.keras.losses.SparseCategoricalCrossentropy(True)
  model = models.from_keras(
    keras_model,
    loss_fn,
    (tf.TensorSpec([None, 6, 6, 2]), tf.TensorSpec([None], tf.int32)),
  )
  batches = [
    (
      random.normal(size=(4, 6, 6, 2)).astype(np.float32),
      random.randint(3, size=4).astype(np.int32),
    )
    for _ in range(4)
  ]
  result = train(
    model,
    PERSONALIZATIONS['maml'],
    CORRECTIONS['none'],
    reference.dataset(batches),
    weight_decay=0.0,
    max_grad_norm=float('inf'),
  )

  def loss(weights, batch):
    x = tf.nn.relu(tf.nn.conv2d(batch[0], weights[0], 1, 'VALID') + weights[1])
    x = tf.reshape(tf.nn.max_pool2d(x, 2, 2, 'VALID'), [-1, 12])
    return loss_fn(batch[1], x @ weights[2] + weights[3])

  # The same again, eagerly and without a loop in a graph.
  weights = start = tuple(map(tf.constant, keras_model.get_weights()))
  for support, query in (batches[:2], batches[2:]):
    with tf.GradientTape() as outer:
      outer.watch(weights)
      adapted = weights
      for _ in range(2):
        with tf.GradientTape() as inner:
          inner.watch(adapted)
          value = loss(adapted, support)
        adapted = tuple(
          u - 0.3 * g
          for u, g in zip(adapted, inner.gradient(value, adapted), strict=True)
        )
      value = loss(adapted, query)
    gradient = outer.gradient(value, weights)
    weights = tuple(
      w - RATE * g for w, g in zip(weights, gradient, strict=True)
    )
  assert_close(
    result.update, [w - w_t for w, w_t in zip(weights, start, strict=True)]
  )
