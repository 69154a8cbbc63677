import numpy as np
import pytest

from tasks.catalog import published
from tasks.runs import settings as settings_lib


# The steps s and their size a of MAML, and α, as published for each method.
@pytest.mark.parametrize(
  'method, personalization, maml_steps, maml_learning_rate, alpha',
  [
    ('fed_dyn', 'none', None, None, 0.01),
    ('per_fed_avg', 'maml', 5, 0.01, None),
    ('pfl_dyn', 'maml', 5, 0.01, 0.01),
    ('pfl_dyn', 'proto', None, None, 0.1),
    ('pfl_scaf', 'maml', 1, 0.1, None),
    ('scaffold', 'none', None, None, None),
  ],
)
def test_defaults_depend_on_the_method(
  method, personalization, maml_steps, maml_learning_rate, alpha
):
  settings = settings_lib.Settings(
    task='cifar10', method=method, personalization=personalization
  )
  resolved = settings.resolve()
  assert resolved.maml_steps == maml_steps
  assert resolved.maml_learning_rate == maml_learning_rate
  assert resolved.alpha == alpha
  assert (resolved.num_clients, resolved.clients_per_round) == (100, 10)
  assert (resolved.local_steps, resolved.batch_size) == (50, 50)
  assert (resolved.learning_rate, resolved.weight_decay) == (0.1, 1e-3)
  assert resolved.learning_rate_decay == 0.997
  bound = np.inf if personalization == 'none' else 10
  assert resolved.max_grad_norm == bound


def test_what_is_given_is_no_default():
  settings = settings_lib.Settings(
    task='cifar10',
    method='pfl_scaf',
    personalization='maml',
    maml_steps=3,
  )
  resolved = settings.resolve()
  assert (resolved.maml_steps, resolved.maml_learning_rate) == (3, 0.1)


def test_image_task_is_the_published_treatment():
  rng = np.random.default_rng(0)
  x = rng.integers(0, 200, (40, 32, 32, 3)).astype(np.uint8)
  y = np.arange(40, dtype=np.int32) % 10
  made = published.image_task((x, y), (x[:10], y[:10]), 10)
  mean, deviation = (x / 255).mean((0, 1, 2)), (x / 255).std((0, 1, 2))
  expected = (x / 255 - mean) / deviation
  assert made.train[0] is x
  scaled = made.build_model(10).get_layer('scaling')(x)
  np.testing.assert_allclose(scaled, expected, atol=1e-4)
  assert made.build_model(10).count_params() == 797_962
  white = np.full((20, 32, 32, 3), 255, np.uint8)
  padded = made.augment(white, [1, 2]).numpy()
  colors = np.unique(padded.reshape(-1, 3), axis=0)
  assert colors.tolist() == [[0] * 3, [255] * 3]
