"""The mathematics: against the authors' figures, and against a plain loop."""

import collections
import functools
import json
import pathlib

import numpy as np
import pytest
import reference
import small_models
import tensorflow as tf

from tff_debias import corrections
from tff_debias import evaluation
from tff_debias import learning_process
from tff_debias import models
from tff_debias import personalizations
from tff_debias import storage as storage_lib

pytestmark = pytest.mark.usefixtures('runtime')

NONE = personalizations.NoPersonalization()
PROTO = personalizations.Proto()


@functools.cache
def golden():
  with np.load(pathlib.Path(__file__).with_name('golden.npz')) as file:
    arrays = dict(file)
  return arrays, json.loads(str(arrays['config']))


def golden_model():
  arrays, _ = golden()
  network = tf.keras.Sequential(
    [
      tf.keras.layers.Input((8, 8)),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(32, 'relu'),
      tf.keras.layers.Dense(16, 'relu'),
      tf.keras.layers.Dense(10),
    ]
  )
  network.set_weights([arrays[f'init/{i}'] for i in range(6)])
  spec = (tf.TensorSpec([None, 8, 8]), tf.TensorSpec([None], tf.int32))
  return models.from_keras(
    network,
    small_models.CLASSIFIER_LOSS,
    spec,
    lambda: [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
  )


def golden_method(name, num_steps):
  _, config = golden()
  maml = personalizations.Maml(
    config['maml_steps'], config['maml_learning_rate']
  )
  dyn, scaf = corrections.Dyn(config['alpha']), corrections.Scaf(num_steps)
  return {
    'fed_avg': (NONE, corrections.NoCorrection()),
    'per_fed_avg_maml': (maml, corrections.NoCorrection()),
    'per_fed_avg_proto': (PROTO, corrections.NoCorrection()),
    'fed_dyn': (NONE, dyn),
    'pfl_dyn_maml': (maml, dyn),
    'pfl_dyn_proto': (PROTO, dyn),
    'scaffold': (NONE, scaf),
    'pfl_scaf_maml': (maml, scaf),
    'pfl_scaf_proto': (PROTO, scaf),
  }[name]


@functools.cache
def golden_evaluation(personalization):
  return evaluation.build_personalized_evaluation(
    golden_model(),
    personalization,
    max_grad_norm=golden()[1]['max_grad_norm'],
  )


def golden_dataset(arrays, part, i):
  """The test batches are no divisor of the data: the last one is smaller."""
  return tf.data.Dataset.from_tensor_slices(
    (arrays[f'{part}_x'][i], arrays[f'{part}_y'][i])
  ).batch(7)


@pytest.mark.parametrize(
  'name',
  [
    'fed_avg',
    'per_fed_avg_maml',
    'per_fed_avg_proto',
    'fed_dyn',
    'pfl_dyn_maml',
    'pfl_dyn_proto',
    'scaffold',
    'pfl_scaf_maml',
    'pfl_scaf_proto',
    'pfl_scaf_proto/num_steps',
  ],
)
def test_every_round_is_that_of_the_authors(tmp_path, name):
  arrays, config = golden()
  name, *num_steps = name.split('/')
  personalization, correction = golden_method(
    name, config['local_steps'] if num_steps else None
  )
  process = learning_process.build_learning_process(
    golden_model(),
    personalization,
    correction,
    learning_rate=config['learning_rate'],
    weight_decay=config['weight_decay'],
    max_grad_norm=config['max_grad_norm'],
    num_clients=config['num_clients'],
    storage=storage_lib.ClientStorage(tmp_path),
    track_all=True,
  )
  # Proto without a correction: the authors do not decay the last layer, which
  # has no gradient there.
  num_compared = 4 if name == 'per_fed_avg_proto' else 6
  num_batches = config['local_steps'] * personalization.batches_per_step
  evaluate = golden_evaluation(personalization)
  clients = [
    collections.OrderedDict(
      (part, golden_dataset(arrays, part, i)) for part in ('train', 'test')
    )
    for i in range(config['num_clients'])
  ]
  state = process.initialize()
  for t, selected in enumerate(arrays['selected']):
    participants = [
      small_models.client(
        f'client {i}', arrays['train_x'][i], arrays['train_y'][i], num_batches
      )
      for i in selected
    ]
    state, _ = process.next(state, participants)
    for key, weights in {
      'selected': process.get_model_weights(state),
      'all': learning_process.get_all_model_weights(state),
    }.items():
      for i, weight in enumerate(weights.trainable[:num_compared]):
        np.testing.assert_allclose(
          weight, arrays[f'{name}/{key}_average/{t}/{i}'], rtol=0, atol=1e-6
        )
      metrics = evaluate(weights, clients)['by_client']
      accuracy = metrics['accuracy']
      np.testing.assert_allclose(
        [
          metrics['loss']['mean'],
          *(accuracy[s] for s in ('mean', 'max', 'min')),
        ],
        arrays[f'{name}/test_{key}'][t],
        rtol=0,
        atol=1e-6,
      )


def convolutional_network():
  tf.keras.utils.set_random_seed(3)
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input((6, 6, 1)),
      tf.keras.layers.Conv2D(2, 3, activation='tanh'),
      tf.keras.layers.AveragePooling2D(2),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(3, 'tanh'),
      tf.keras.layers.Dense(4),
    ]
  )


MAML_STEPS, MAML_RATE = 2, 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'correction', 'options'),
  [
    ('none', corrections.NoCorrection(), {'decay': 0.5, 'wd': 0.1}),
    ('maml', corrections.Dyn(0.05), {'decay': 0.7, 'wd': 0.05}),
    ('proto', corrections.Dyn(1.0), {'m': 7, 'max_norm': 0.5}),
    ('none', corrections.Scaf(), {'decay': 0.6, 'm': 11}),
    ('maml', corrections.Scaf(), {'decay': 0.9, 'wd': 0.05, 'max_norm': 0.3}),
  ],
)
def test_a_convolutional_network_follows_the_plain_loop(
  tmp_path, name, correction, options
):
  options = {'decay': 1.0, 'wd': 0.0, 'max_norm': 10.0, 'm': 5, **options}
  wd = options['wd']
  personalization, gradient = {
    'none': (NONE, reference.loss_gradient),
    'maml': (
      personalizations.Maml(MAML_STEPS, MAML_RATE),
      lambda weights, *batches: reference.derivative(
        lambda ws: reference.maml_loss(ws, *batches, MAML_STEPS, MAML_RATE, wd),
        weights,
      ),
    ),
    'proto': (
      PROTO,
      lambda weights, *batches: reference.derivative(
        lambda ws: reference.proto_loss(ws, *batches), weights
      ),
    ),
  }[name]
  spec = (tf.TensorSpec([None, 6, 6, 1]), tf.TensorSpec([None], tf.int32))
  model = models.from_keras(
    convolutional_network(), small_models.CLASSIFIER_LOSS, spec
  )
  process = learning_process.build_learning_process(
    model,
    personalization,
    correction,
    learning_rate_fn=learning_process.exponential_decay(0.3, options['decay']),
    weight_decay=wd,
    max_grad_norm=options['max_norm'],
    num_clients=options['m'],
    storage=storage_lib.ClientStorage(tmp_path),
    track_all=True,
  )
  loop = reference.loop_of(
    correction,
    model.initial_weights.trainable,
    gradient,
    rate=lambda t: 0.3 * options['decay'] ** t,
    weight_decay=wd,
    max_norm=options['max_norm'],
    num_clients=options['m'],
    batches_per_step=personalization.batches_per_step,
  )
  random = np.random.RandomState(0)
  x = random.normal(size=(options['m'], 9, 6, 6, 1)).astype(np.float32)
  y = random.randint(0, 4, size=(options['m'], 9)).astype(np.int32)
  state = process.initialize()
  for selected in ([0, 2, 4], [1, 2], [4], [0, 1, 2, 3, 4]):
    # Each client has another number of batches, and often an odd one, which
    # leaves one over. Batches are of 4, 4 and 1 examples in turn.
    participants = {
      i: small_models.client(f'{i}', x[i], y[i], 3 + i, batch_size=4)
      for i in selected
    }
    state, _ = process.next(state, list(participants.values()))
    loop.round({i: small_models.batches(p) for i, p in participants.items()})
    for found, expected in (
      (process.get_model_weights(state), loop.selected),
      (learning_process.get_all_model_weights(state), loop.all),
    ):
      for weight, other in zip(found.trainable, expected, strict=True):
        np.testing.assert_allclose(weight, other, rtol=0, atol=1e-5)
  if options['max_norm'] < 10:
    assert loop.steps[-1][1] > loop.max_norm, (
      'The test does not see the clipping.'
    )
