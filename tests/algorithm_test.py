"""Algorithm 1, function by function: one file, as the module is one."""

import numpy as np
import pytest
import reference
import small_models
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import algorithm
from tff_debias import corrections
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


def states_of(correction, weights):
  """A state of a client, and a mean over the population, at random."""
  if correction == 'none':
    return (), ()
  mean = random_weights(weights, seed=2) if correction == 'scaf' else ()
  return random_weights(weights, seed=1), mean


def train(model, personalization, correction, dataset, *args, **options):
  return trainer(model, personalization, correction, *args, **options)(dataset)


def trainer(
  model,
  personalization,
  correction,
  state=(),
  mean=(),
  rate=RATE,
  weight_decay=WEIGHT_DECAY,
  max_grad_norm=10.0,
  start=None,
):
  """The client's round, as a function of the data set."""
  method = algorithm.Algorithm(
    model, personalization, correction, max_grad_norm
  )
  received = algorithm.Broadcast(
    tf.nest.map_structure(tf.constant, start or model.initial_weights),
    (mean,),
    tf.constant(rate),
    tf.constant(weight_decay),
  )
  return tf.function(
    lambda dataset: algorithm.client_update(
      method, received, (state,), dataset
    ),
    autograph=False,
  )


def one_weight_model(**options):
  """y = w x, with w = 1, and the squared error."""
  return small_models.linear_model(1, 1.0, **options)


def pairs(*batches):
  """A data set of batches of (x, y), all of them columns of numbers."""
  return small_models.dataset(
    [
      tuple(np.array(part, np.float32)[:, np.newaxis] for part in batch)
      for batch in batches
    ]
  )


def assert_close(actual, expected):
  assert len(actual) == len(expected)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5)


# Seven batches of different sizes, so that one is left over by the pairs. Not
# all of the supports have all of the classes.
BATCHES = [
  small_models.batch(5, [0, 0, 1, 2, 2], seed=1),
  small_models.batch(5, [1, 0, 1, 2, 0], seed=2),
  small_models.batch(4, [0, 0, 2, 2], seed=3),
  small_models.batch(5, [1, 0, 1, 2, 0], seed=4),
  small_models.batch(2, [1, 1], seed=5),
  small_models.batch(3, [0, 2, 0], seed=6),
  small_models.batch(1, [1], seed=7),
]


def meta_loss(name, weights, *batches):
  if name == 'maml':
    return reference.maml_loss(weights, *batches, *MAML_SETTINGS)
  if name == 'proto':
    return reference.proto_loss(weights, *batches)
  return reference.loss(weights, *batches)


def outcome(name, weights, *batches):
  """The labels that count in a step, and their scores."""
  x, labels = batches[-1]
  if name == 'maml':
    weights = reference.maml_adapted(weights, batches[0], *MAML_SETTINGS)
  if name == 'proto':
    x, labels = reference.proto_counted(*batches)
    return labels, reference.proto_scores(weights, batches[0], x)
  return labels, reference.logits(weights, x)


@pytest.mark.slow
@pytest.mark.parametrize('correction', CORRECTIONS)
@pytest.mark.parametrize('personalization', PERSONALIZATIONS)
def test_against_a_plain_loop(personalization, correction):
  model, weights = small_models.network(
    metrics=lambda: [
      tf.keras.metrics.SparseCategoricalAccuracy('accuracy'),
      tf.keras.metrics.SparseTopKCategoricalAccuracy(2, 'top_2'),
    ]
  )
  size = PERSONALIZATIONS[personalization].batches_per_step
  state, mean = states_of(correction, weights)

  def loop_of_one_client(max_norm):
    loop = reference.loop_of(
      CORRECTIONS[correction],
      weights,
      lambda ws, *batches: reference.derivative(
        lambda ws: meta_loss(personalization, ws, *batches), ws
      ),
      rate=lambda t: RATE,
      weight_decay=WEIGHT_DECAY,
      max_norm=max_norm,
      num_clients=1,
      batches_per_step=size,
    )
    loop.kept, loop.mean_kept = [state], mean
    loop.client(0, loop.selected, BATCHES)
    return loop

  # A bound that clips some of the steps, but not all of them.
  max_norm = np.mean([norm for _, norm in loop_of_one_client(np.inf).steps])
  loop = loop_of_one_client(max_norm)
  norms = [norm for _, norm in loop.steps]
  assert min(norms) < max_norm < max(norms)
  result = train(
    model,
    PERSONALIZATIONS[personalization],
    CORRECTIONS[correction],
    small_models.dataset(BATCHES),
    state,
    mean,
    max_grad_norm=float(max_norm),
  )
  assert result.is_included
  assert_close(
    result.update, [w - s for w, s in zip(loop.newest[0], weights, strict=True)]
  )
  assert_close(result.states[0], loop.kept[0])
  change = [new - old for new, old in zip(loop.kept[0], state, strict=True)]
  assert_close(result.state_changes[0], change if correction == 'scaf' else ())
  # The metrics are of the predictions before each step changed the weights.
  loss_sum = num_examples = 0
  accuracy = tf.keras.metrics.SparseCategoricalAccuracy()
  top_2 = tf.keras.metrics.SparseTopKCategoricalAccuracy(2)
  for k, (ws, _) in enumerate(loop.steps):
    batches = BATCHES[size * k : size * (k + 1)]
    labels, scores = outcome(personalization, ws, *batches)
    num_examples += len(labels)
    loss_sum += np.real(meta_loss(personalization, ws, *batches)) * len(labels)
    if len(labels):
      accuracy.update_state(labels, scores)
      top_2.update_state(labels, scores)
  np.testing.assert_allclose(result.sums.loss_sum, loss_sum, rtol=1e-5)
  assert result.sums.num_examples == num_examples
  assert result.sums.num_steps == len(BATCHES) // size
  metrics = model.metrics.finalize(result.sums.metrics)
  assert list(metrics) == ['accuracy', 'top_2']
  np.testing.assert_allclose(metrics['accuracy'], accuracy.result())
  np.testing.assert_allclose(metrics['top_2'], top_2.result())


def take_mean(*values):
  return sum(values) / len(values)


@pytest.mark.parametrize(
  'correction', [*CORRECTIONS.values(), corrections.Scaf(num_steps=2)]
)
def test_rounds_against_a_plain_loop(correction):
  method = algorithm.Algorithm(
    small_models.linear_model(),
    PERSONALIZATIONS['none'],
    correction,
    float('inf'),
    track_all=True,
  )
  initial = (tf.ones([3, 1]),)
  states = [algorithm.initial_states(method, initial)] * 5
  state = algorithm.ServerState(initial, states[0], ())

  def rate(t):
    return 0.1 * 0.5**t

  loop = reference.loop_of(
    correction,
    initial,
    reference.squared_gradient,
    rate=rate,
    weight_decay=WEIGHT_DECAY,
  )
  client_update = tf.function(
    lambda *args: algorithm.client_update(method, *args), autograph=False
  )
  for t, participants in enumerate(([0, 1], [1, 2, 3], [0, 4])):
    clients = {
      i: small_models.linear_client(i, correction.num_steps or 1 + i)
      for i in participants
    }
    sent = algorithm.broadcast(
      method, state, (), tf.constant(rate(t)), tf.constant(WEIGHT_DECAY)
    )
    results = []
    for i, participant in clients.items():
      results.append(client_update(sent, states[i], participant['data']))
      states[i] = results[-1].states
    update, changes = (
      tf.nest.map_structure(take_mean, *parts)
      for parts in zip(
        *((r.update, r.state_changes) for r in results), strict=True
      )
    )
    share = tf.constant(len(participants) / 5)
    state = algorithm.server_update(
      method,
      state,
      sent,
      update,
      changes,
      share,
    )
    loop.round({i: small_models.batches(c) for i, c in clients.items()})
    assert_close(state.weights, loop.selected)
    assert_close(corrections.all_model(state.mean_states[1], initial), loop.all)
    if state.mean_states[0]:
      assert_close(state.mean_states[0], reference.mean(loop.kept))
      for kept, expected in zip(states, loop.kept, strict=True):
        assert_close(kept[0], expected)
      assert np.abs(state.mean_states[0][0]).max() > 0.01


def test_the_servers_optimizer_takes_minus_the_mean_update_as_gradient():
  optimizer = tff.learning.optimizers.build_sgdm(0.5, momentum=0.5)
  method = algorithm.Algorithm(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['none'],
    float('inf'),
    server_optimizer_fn=optimizer,
  )
  weights = (tf.constant([[1.0]]),)
  state = algorithm.ServerState(
    weights, ((),), optimizer.initialize((tf.TensorSpec([1, 1]),))
  )
  # The momentum is 2, then 0.5 · 2 + 2.
  for expected in (1 + 0.5 * 2, 2 + 0.5 * 3):
    sent = algorithm.broadcast(method, state, (), 0.1, 0.0)
    update = (tf.constant([[2.0]]),)
    state = algorithm.server_update(
      method, state, sent, update, ((),), tf.constant(0.5)
    )
    assert_close(state.weights, [[[expected]]])


def test_a_step_by_hand():
  # w = 1, and ∇ of the mean of (w x)² is 2 · (1 + 9) / 2 · w = 10. The term
  # makes it 40, which is clipped to 8. Weight decay comes after: 8 + 0.5.
  result = train(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['scaf'],
    pairs(([1.0, 3.0], [0.0, 0.0])),
    state=(tf.constant([[-10.0]]),),
    mean=(tf.constant([[20.0]]),),
    rate=0.1,
    weight_decay=0.5,
    max_grad_norm=8.0,
  )
  np.testing.assert_allclose(result.update[0], [[-0.85]], rtol=1e-6)
  # c_i - c + (w^t - w_i) / (1 · 0.1), and what changed.
  np.testing.assert_allclose(result.states[0][0], [[-21.5]], rtol=1e-6)
  np.testing.assert_allclose(result.state_changes[0][0], [[-11.5]], rtol=1e-6)
  np.testing.assert_allclose(result.sums.loss_sum, 10.0)
  assert result.sums.num_examples == 2


def test_no_gradient_at_all_is_not_divided_by():
  result = train(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['none'],
    pairs(([0.0], [0.0])),
    rate=0.1,
    weight_decay=0.5,
  )
  assert result.is_included
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
    assert result.is_included == (num_steps > 0)
    # The last batch of every step is the query.
    assert result.sums.num_examples == sum(
      size * (i + 1) for i in range(num_steps)
    )


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
  np.testing.assert_allclose(result.sums.loss_sum, 4.0)
  np.testing.assert_allclose(result.update[0], [[0.4]], rtol=1e-6)


@pytest.mark.parametrize('personalization', ['maml', 'proto'])
def test_every_second_example_of_one_batch_is_of_the_query(personalization):
  model, _ = small_models.network()
  run = trainer(model, PERSONALIZATIONS[personalization], CORRECTIONS['none'])
  x, y = BATCHES[0]
  halves = [(x[::2], y[::2]), (x[1::2], y[1::2])]
  found, expected = (
    run(small_models.dataset(batches)) for batches in (BATCHES[:1], halves)
  )
  assert found.is_included and found.sums.num_steps == 1
  assert_close(found.update, expected.update)
  assert found.sums.num_examples == expected.sums.num_examples > 0


def assert_is_left_out(result, state):
  assert not result.is_included
  zeros = (result.update, result.state_changes, result.sums)
  for zero in tf.nest.flatten(zeros):
    np.testing.assert_array_equal(zero, np.zeros_like(zero))
  assert len(result.states[0]) == len(state)
  for actual, expected in zip(result.states[0], state, strict=True):
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
  'personalization, correction',
  [('none', 'none'), ('none', 'scaf'), ('maml', 'dyn'), ('proto', 'scaf')],
)
def test_a_client_without_a_finite_step_is_left_out(
  personalization, correction
):
  model, weights = small_models.network(
    metrics=tf.keras.metrics.SparseCategoricalAccuracy
  )
  state, mean = states_of(correction, weights)
  run = trainer(
    model,
    PERSONALIZATIONS[personalization],
    CORRECTIONS[correction],
    state,
    mean,
  )
  assert run(small_models.dataset(BATCHES)).is_included
  for bad in (float('nan'), float('inf')):
    batches = [(x.copy(), y) for x, y in BATCHES]
    # One example, in the query of the second step. The difference of two
    # infinities is no number.
    batches[3][0][0] = [bad, -bad, bad]
    result = run(small_models.dataset(batches))
    assert_is_left_out(result, state)
    assert result.has_stepped
  # No batch, or one of one example, which makes no support and query.
  for num_batches in range(PERSONALIZATIONS[personalization].batches_per_step):
    result = run(small_models.dataset(BATCHES[-1:]).take(num_batches))
    assert_is_left_out(result, state)
    assert not result.has_stepped


@pytest.mark.parametrize(
  ('batches', 'rate'),
  [
    # It diverges.
    ([([1.0], [0.0])] * 60, 10.0),
    # The loss is 10^40, which is not finite, its derivative only -20.
    ([([1.0], [0.0]), ([1e-19], [1e20])], RATE),
  ],
)
def test_a_client_whose_weights_or_loss_overflow_is_left_out(batches, rate):
  state = (np.array([[3.0]], np.float32),)
  result = train(
    one_weight_model(),
    PERSONALIZATIONS['none'],
    CORRECTIONS['dyn'],
    pairs(*batches),
    state=state,
    rate=rate,
    max_grad_norm=float('inf'),
  )
  assert_is_left_out(result, state)


def test_an_embedding_is_clipped_like_any_layer():
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
  result = train(
    model,
    PERSONALIZATIONS['none'],
    CORRECTIONS['dyn'],
    tf.data.Dataset.from_tensors((np.zeros((1, 4), np.int32), [[0.0]])),
    state=tuple(map(np.zeros_like, model.initial_weights.trainable)),
    rate=1.0,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  # ∇ of (Σ_j e_j · k_j)² at ones: 16 for an entry of k, 64 for an entry of the
  # row of the embedding that all four have.
  gradient = [np.zeros((5, 2)), np.full((8, 1), 16.0)]
  gradient[0][0] = 64
  assert_close(result.update, [-g for g in reference.clip(gradient, 1.0)[0]])
