import numpy as np
import pytest
import reference
import small_models
import tensorflow as tf

from tff_debias import models
from tff_debias import personalizations

SUPPORT = small_models.batch(5, seed=1)
QUERY = small_models.batch(4, seed=2)
INFINITY = float('inf')


def quadratic_model(slope=2.0, non_trainable=()):
  """L(w; x) = slope/2 · mean ‖w - x‖², of no network at all."""

  def apply(weights, x, training):
    return models.Outputs(x - weights.trainable[0], None)

  return models.Model(
    models.ModelWeights((np.zeros(2, np.float32),), non_trainable),
    (tf.TensorSpec([None, 2]), tf.TensorSpec([None])),
    apply,
    lambda labels, error: (
      slope / 2 * tf.reduce_mean(tf.reduce_sum(error**2, axis=-1))
    ),
    models.Metrics(dict, lambda state, *_: state, dict),
  )


def meta_loss(maml, model, weights, batches, weight_decay):
  """The result and its gradient."""

  @tf.function
  def compute(trainable):
    with tf.GradientTape() as tape:
      tape.watch(trainable)
      result = maml.meta_loss(
        model, models.ModelWeights(trainable, ()), batches, weight_decay
      )
    return result, tape.gradient(result.loss, trainable)

  return compute(tuple(map(tf.constant, weights)))


def personalize(maml, model, weights, dataset, max_grad_norm):
  weights = models.ModelWeights(tuple(map(tf.constant, weights)), ())
  return tf.function(
    lambda: maml.personalize(model, weights, dataset, max_grad_norm)
  )()


def assert_close(actual, expected, tolerance=1e-5):
  assert len(actual) == len(expected)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def distance(first, second):
  return max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize('first_order', [False, True])
@pytest.mark.parametrize('weight_decay', [0.0, 0.3])
@pytest.mark.parametrize('num_steps', [1, 3])
def test_the_loss_and_its_gradient(num_steps, weight_decay, first_order):
  model, weights = small_models.network()
  settings = (num_steps, 0.4, weight_decay)
  result, gradient = meta_loss(
    personalizations.Maml(num_steps, 0.4, first_order),
    model,
    weights,
    (SUPPORT, QUERY),
    weight_decay,
  )
  np.testing.assert_allclose(
    result.loss,
    reference.maml_loss(weights, SUPPORT, QUERY, *settings),
    rtol=1e-5,
  )
  adapted = reference.maml_adapted(weights, SUPPORT, *settings)
  # ∇L(u_j; A) is a constant to the first order, but wd u_j is not.
  slope = (1 - 0.4 * weight_decay) ** num_steps
  without = [slope * g for g in reference.loss_gradient(adapted, QUERY)]
  exact = reference.derivative(
    lambda ws: reference.maml_loss(ws, SUPPORT, QUERY, *settings), weights
  )
  assert_close(gradient, without if first_order else exact)
  # The second derivatives are worth seeing.
  assert distance(exact, without) > 0.05
  np.testing.assert_array_equal(result.labels, QUERY[1])
  np.testing.assert_allclose(
    result.predictions, reference.logits(adapted, QUERY[0]), atol=1e-5
  )
  assert result.num_examples == 4


@pytest.mark.parametrize('first_order', [False, True])
def test_the_gradient_on_a_quadratic_is_the_closed_form(first_order):
  rate, weight_decay, slope = 0.1, 0.5, 2.0
  w, a, b = np.array([1.0, -2.0]), np.array([3.0, 0.5]), np.array([-1.0, 1.0])
  batches = tuple(
    (x[np.newaxis].astype(np.float32), np.zeros(1, np.float32)) for x in (a, b)
  )
  _, (gradient,) = meta_loss(
    personalizations.Maml(2, rate, first_order),
    quadratic_model(slope),
    [w.astype(np.float32)],
    batches,
    weight_decay,
  )
  # u_{j+1} = factor u_j + rate slope a
  factor = 1 - rate * (slope + weight_decay)
  adapted = factor**2 * w + (factor + 1) * rate * slope * a
  through = 1 - rate * weight_decay if first_order else factor
  expected = through**2 * slope * (adapted - b)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_weights_that_the_loss_does_not_depend_on_stay():
  model = quadratic_model()
  unused = np.full(3, 2.0, np.float32)
  adapted = personalize(
    personalizations.Maml(1, 0.1),
    model,
    [np.ones(2, np.float32), unused],
    small_models.dataset([(np.zeros((1, 2), np.float32), np.zeros(1))]),
    INFINITY,
  )
  np.testing.assert_array_equal(adapted.trainable[1], unused)
  np.testing.assert_allclose(adapted.trainable[0], 0.8)


# The first norms of the gradient are around 1.
@pytest.mark.parametrize('max_grad_norm', [0.3, 10.0, INFINITY])
def test_personalize_takes_full_batch_clipped_steps(max_grad_norm):
  model, weights = small_models.network()
  batches = [small_models.batch(n, seed=n) for n in (5, 5, 2)]
  personalized = personalize(
    personalizations.Maml(3, 0.5),
    model,
    weights,
    small_models.dataset(batches),
    max_grad_norm,
  )
  whole = tuple(np.concatenate(part) for part in zip(*batches, strict=True))
  expected, norms = [w.astype(np.float64) for w in weights], []
  for _ in range(3):
    gradient, norm = reference.clip(
      reference.loss_gradient(expected, whole), max_grad_norm
    )
    norms.append(norm)
    expected = [w - 0.5 * g for w, g in zip(expected, gradient, strict=True)]
  assert min(norms) > 0.3 and max(norms) < 10
  assert_close(personalized.trainable, expected)


def test_personalize_does_not_depend_on_the_batches():
  model, weights = small_models.network()
  x, y = small_models.batch(7)
  maml = personalizations.Maml(2, 0.5)
  results = [
    personalize(
      maml,
      model,
      weights,
      tf.data.Dataset.from_tensor_slices((x, y)).batch(size),
      0.5,
    ).trainable
    for size in (7, 3, 1)
  ]
  assert_close(results[1], results[0], 1e-6)
  assert_close(results[2], results[0], 1e-6)
  assert distance(results[0], weights) > 0.1


def test_personalize_without_data_keeps_the_model():
  model, weights = small_models.network()
  dataset = small_models.dataset([small_models.batch(2)]).take(0)
  personalized = personalize(
    personalizations.Maml(2, 0.5), model, weights, dataset, 10.0
  )
  for actual, expected in zip(personalized.trainable, weights, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_non_trainable_weights_are_used_and_kept():
  def apply(weights, x, training):
    return models.Outputs(
      x - weights.trainable[0] * weights.non_trainable[0], None
    )

  quadratic = quadratic_model(non_trainable=(np.float32(3),))
  model = models.Model(
    quadratic.initial_weights,
    quadratic.input_spec,
    apply,
    quadratic.loss,
    quadratic.metrics,
  )
  weights = models.ModelWeights((tf.ones(2),), (tf.constant(3.0),))
  data = np.full((1, 2), 1.0, np.float32), np.zeros(1, np.float32)
  maml = personalizations.Maml(1, 0.1)
  # ∇ (1 - 3 w)² = -6 (1 - 3 w), which is 12 at 1.
  personalized = maml.personalize(
    model, weights, tf.data.Dataset.from_tensors(data), INFINITY
  )
  np.testing.assert_allclose(personalized.trainable[0], -0.2, atol=1e-6)
  assert personalized.non_trainable[0] == 3
  result = maml.meta_loss(model, weights, (data, data), 0.0)
  np.testing.assert_allclose(result.loss, 2 * 1.6**2, rtol=1e-5)


@pytest.mark.parametrize('num_steps', [0, -1, 1.5, 2.0, '3', None, INFINITY])
def test_a_wrong_number_of_steps_is_an_error(num_steps):
  with pytest.raises(ValueError, match='num_steps of MAML must be'):
    personalizations.Maml(num_steps, 0.1)


@pytest.mark.parametrize('rate', [0.0, -0.1, INFINITY, float('nan')])
def test_a_wrong_learning_rate_is_an_error(rate):
  with pytest.raises(
    ValueError, match='learning_rate of MAML must be a positive finite'
  ):
    personalizations.Maml(1, rate)
