import math

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import corrections
from tff_debias import learning_process
from tff_debias import personalizations
from tff_debias import storage as storage_lib

NONE = personalizations.NoPersonalization()
PLAIN = corrections.NoCorrection()
DYN = corrections.Dyn(alpha=0.5)
SCAF = corrections.Scaf()


@pytest.mark.parametrize(
  ('options', 'error', 'message'),
  [
    ({'learning_rate': 0}, ValueError, 'learning_rate must be a positive.* 0'),
    ({'learning_rate': '1'}, ValueError, "learning_rate must be .*'1'"),
    ({'learning_rate': math.inf}, ValueError, 'learning_rate must be .*inf'),
    ({'learning_rate': math.nan}, ValueError, 'learning_rate must be .*nan'),
    ({'learning_rate': True}, ValueError, 'learning_rate must be .*True'),
    ({'weight_decay': -1}, ValueError, 'weight_decay must be a nonneg.*-1'),
    ({'max_grad_norm': 0}, ValueError, 'max_grad_norm must be a positive.* 0'),
    ({'max_grad_norm': 'x'}, ValueError, "max_grad_norm must be .*'x'"),
    ({'learning_rate_fn': 0.9}, TypeError, 'learning_rate_fn .*function.*0.9'),
    ({'num_clients': None}, ValueError, 'Dyn.* needs .*num_clients.*None'),
    ({'num_clients': 0}, ValueError, 'needs .*num_clients.* 0'),
    ({'num_clients': 2.5}, ValueError, 'needs .*num_clients.*2.5'),
    ({'num_clients': True}, ValueError, 'needs .*num_clients.*True'),
    ({'storage': None}, ValueError, 'Dyn.* needs storage.*None'),
    ({'storage': '/tmp/x'}, ValueError, "needs storage.*'/tmp/x'"),
    ({'correction': 'dyn'}, TypeError, "correction must be .*'dyn'"),
    ({'correction': corrections.Dyn}, TypeError, 'correction must be'),
    ({'personalization': None}, TypeError, 'personalization must be .*None'),
    ({'model': 3}, TypeError, 'model must be .* 3'),
    (
      {'server_optimizer_fn': 'sgd'},
      TypeError,
      "TFF optimizer.*build_sgdm.*'sgd'",
    ),
    (
      {'server_optimizer_fn': tff.learning.optimizers.build_sgdm(1.0)},
      ValueError,
      'Dyn.* server step .*server_optimizer_fn must be None',
    ),
    (
      {'correction': PLAIN, 'track_all': True, 'num_clients': None},
      ValueError,
      'track_all needs .*num_clients',
    ),
    (
      {'correction': PLAIN, 'track_all': True, 'storage': None},
      ValueError,
      'track_all .*needs storage',
    ),
    (
      {'personalization': personalizations.Proto()},
      ValueError,
      'Prototypes need one integer label',
    ),
    (
      {'metrics_aggregator': 3},
      TypeError,
      'metrics_aggregator must be a function .*3',
    ),
    (
      {
        'correction': SCAF,
        'client_optimizer_fn': tff.learning.optimizers.build_adam(0.1),
      },
      ValueError,
      'Scaf.* plain SGD only.*client_optimizer_fn must be None',
    ),
  ],
)
def test_an_argument_that_is_wrong_is_named(tmp_path, options, error, message):
  arguments = {
    'model': small_models.linear_model(),
    'personalization': NONE,
    'correction': DYN,
    'num_clients': 5,
    'storage': storage_lib.ClientStorage(tmp_path / 'new'),
    **options,
  }
  with pytest.raises(error, match=message):
    learning_process.build_learning_process(**arguments)
  assert not (tmp_path / 'new').exists()


def test_numbers_of_numpy_are_numbers(runtime, tmp_path):
  process = small_models.linear_process(
    DYN,
    tmp_path,
    learning_rate=np.float32(0.25),
    num_clients=np.int64(5),
  )
  assert process.get_hparams(process.initialize())['learning_rate'] == 0.25


@pytest.mark.parametrize(
  ('personalization', 'max_grad_norm', 'expected'),
  [
    (NONE, None, 50),
    (NONE, 20, 20),
    (personalizations.Maml(1, 1e-9), None, 10),
    (personalizations.Maml(1, 1e-9), math.inf, 50),
    (personalizations.Maml(1, 1e-9), 20, 20),
    (small_models.FreeMaml(1, 1e-9), None, 50),
    (small_models.FreeMaml(1, 1e-9), 20, 20),
  ],
)
def test_gradients_are_clipped_by_default_where_the_paper_does(
  runtime, personalization, max_grad_norm, expected
):
  process = small_models.linear_process(
    PLAIN,
    None,
    personalization,
    model=small_models.linear_model(1),
    learning_rate=0.1,
    max_grad_norm=max_grad_norm,
  )
  # The gradient of (0 + 25)² is 50.
  x, y = np.ones((1, 1), np.float32), np.full((1, 1), -25, np.float32)
  client = small_models.client('a', x, y, personalization.batches_per_step)
  state, _ = process.next(process.initialize(), [client['data']])
  np.testing.assert_allclose(
    small_models.selected(process, state), [[-0.1 * expected]], rtol=1e-5
  )


def test_exponential_decay():
  learning_rate_fn = learning_process.exponential_decay(0.25, 0.9)
  for t in (0, 1, 100):
    assert float(learning_rate_fn(tf.constant(t))) == pytest.approx(
      0.25 * 0.9**t, rel=1e-4
    )


@pytest.mark.parametrize('wrong', [0, -1, math.nan, math.inf, 'x'])
def test_a_wrong_decay_is_named(wrong):
  with pytest.raises(ValueError, match='^decay must be a positive'):
    learning_process.exponential_decay(0.1, wrong)
  with pytest.raises(ValueError, match='^learning_rate must be a positive'):
    learning_process.exponential_decay(wrong, 0.9)
