import math

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import algorithm
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
    ({'learning_rate': math.nan}, ValueError, 'learning_rate must be .*nan'),
    (
      {
        'correction': PLAIN,
        'client_optimizer_fn': tff.learning.optimizers.build_adam(0.25),
        'learning_rate': 0.1,
      },
      ValueError,
      'learning_rate has 0.1, client_optimizer_fn has 0.25',
    ),
    (
      {
        'learning_rate': 0.1,
        'learning_rate_fn': learning_process.exponential_decay(0.2, 0.5),
      },
      ValueError,
      'learning_rate has 0.1, learning_rate_fn has 0.2',
    ),
    (
      {
        'correction': PLAIN,
        'client_optimizer_fn': tff.learning.optimizers.schedule_learning_rate(
          tff.learning.optimizers.build_sgdm(0.1), lambda step: 0.1
        ),
      },
      ValueError,
      'hyperparameter learning_rate.* a learning_rate_fn',
    ),
    ({'weight_decay': -1}, ValueError, 'weight_decay must be a nonneg.*-1'),
    ({'max_grad_norm': 0}, ValueError, 'max_grad_norm must be a positive.* 0'),
    ({'max_grad_norm': 'x'}, ValueError, "max_grad_norm must be .*'x'"),
    ({'num_clients': None}, ValueError, 'Dyn.* needs .*num_clients.*None'),
    ({'num_clients': 0}, ValueError, 'needs .*num_clients.* 0'),
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


@pytest.mark.parametrize(
  ('personalization', 'max_grad_norm', 'expected'),
  [
    (NONE, None, 50),
    (personalizations.Maml(1, 1e-9), None, 10),
    (personalizations.Maml(1, 1e-9), math.inf, 50),
    (small_models.FreeMaml(1, 1e-9), None, 50),
    (small_models.FreeMaml(1, 1e-9), 20, 20),
  ],
)
def test_gradients_are_clipped_by_default_where_the_paper_does(
  personalization, max_grad_norm, expected
):
  method = algorithm.Algorithm(
    small_models.linear_model(1), personalization, PLAIN, max_grad_norm
  )
  received = algorithm.Broadcast(
    tf.nest.map_structure(tf.constant, method.model.initial_weights),
    ((),),
    tf.constant(0.1),
    tf.constant(0.0),
  )
  # The gradient of (0 + 25)² is 50.
  batch = tf.ones([1, 1]), tf.fill([1, 1], -25.0)
  dataset = tf.data.Dataset.from_tensors(batch)
  dataset = dataset.repeat(personalization.batches_per_step)
  result = tf.function(
    lambda: algorithm.client_update(method, received, ((),), dataset)
  )()
  np.testing.assert_allclose(result.update[0], [[-0.1 * expected]], rtol=1e-5)


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
