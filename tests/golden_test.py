"""The mathematics: against the authors' figures, and against a plain loop."""

import collections
import functools
import json
import pathlib

import numpy as np
import problems
import pytest
import tensorflow as tf

from tff_debias import corrections
from tff_debias import evaluation
from tff_debias import learning_process
from tff_debias import method
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
    problems.CLASSIFIER_LOSS,
    spec,
    lambda: [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
  )


def golden_method(name, equal_steps):
  _, config = golden()
  maml = personalizations.Maml(
    config['maml_steps'], config['maml_learning_rate']
  )
  dyn, scaf = corrections.Dyn(config['alpha']), corrections.Scaf(equal_steps)
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


def golden_dataset(arrays, part, device):
  """The test batches are no divisor of the data: the last one is smaller."""
  return tf.data.Dataset.from_tensor_slices(
    (arrays[f'{part}_x'][device], arrays[f'{part}_y'][device])
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
    'scaffold/equal_steps',
    'pfl_scaf_maml/equal_steps',
    'pfl_scaf_proto/equal_steps',
  ],
)
def test_every_round_is_that_of_the_authors(tmp_path, name):
  arrays, config = golden()
  name, *equal_steps = name.split('/')
  personalization, correction = golden_method(name, bool(equal_steps))
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
  # has no gradient there (ALGORITHMS.md).
  num_compared = 4 if name == 'per_fed_avg_proto' else 6
  num_batches = config['local_steps'] * personalization.batches_per_step
  evaluate = evaluation.build_personalized_evaluation(
    golden_model(),
    personalization,
    max_grad_norm=config['max_grad_norm'],
  )
  devices = [
    collections.OrderedDict(
      (part, golden_dataset(arrays, part, i)) for part in ('train', 'test')
    )
    for i in range(config['num_clients'])
  ]
  state = process.initialize()
  for t, selected in enumerate(arrays['selected']):
    participants = [
      problems.client(
        f'device {i}', arrays['train_x'][i], arrays['train_y'][i], num_batches
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
          weight, arrays[f'{name}/{key}_average/{t}/{i}'], rtol=0, atol=1e-5
        )
      metrics = evaluate(weights, devices)['by_client']
      accuracy = metrics['accuracy']
      np.testing.assert_allclose(
        [
          metrics['loss']['mean'],
          *(accuracy[s] for s in ('mean', 'max', 'min')),
        ],
        arrays[f'{name}/test_{key}'][t],
        rtol=0,
        atol=1e-5,
      )


class PlainLoop:
  """ALGORITHMS.md once more: eager, on a Keras model that owns its weights."""

  def __init__(
    self, network, personalization, alpha=None, scaf=False, **others
  ):
    self.network = network
    self.feature = tf.keras.Model(network.input, network.layers[-2].output)
    self.kind, self.steps, self.rate = personalization
    self.alpha, self.scaf = alpha, scaf
    self.beta, self.decay, self.wd, self.max_norm, self.m = (
      others[name] for name in ('beta', 'decay', 'wd', 'max_norm', 'm')
    )
    self.selected = network.get_weights()
    zeros = [np.zeros_like(w) for w in self.selected]
    self.kept = [zeros] * self.m
    self.newest = [self.selected] * self.m
    self.t = 0

  @property
  def all(self):
    return [np.mean(ws, axis=0) for ws in zip(*self.newest, strict=True)]

  def mean_kept(self):
    return [np.mean(ks, axis=0) for ks in zip(*self.kept, strict=True)]

  def loss(self, batch):
    return problems.CLASSIFIER_LOSS(batch[1], self.network(batch[0]))

  def gradient_at(self, weights, loss):
    self.network.set_weights(weights)
    variables = self.network.trainable_variables
    with tf.GradientTape() as tape:
      value = loss()
    gradients = tape.gradient(value, variables, unconnected_gradients='zero')
    return [g.numpy() for g in gradients]

  def hessian_times(self, weights, loss, vector):
    def slope():
      with tf.GradientTape() as tape:
        value = loss()
      gradients = tape.gradient(value, self.network.trainable_variables)
      return tf.add_n(
        [tf.reduce_sum(g * v) for g, v in zip(gradients, vector, strict=True)]
      )

    return self.gradient_at(weights, slope)

  def maml_gradient(self, w, support, query):
    """∇ L(u_s; B) times the Jacobians I - a (H(u_j) + wd), last one first."""
    path = [w]
    for _ in range(self.steps):
      g = self.gradient_at(path[-1], lambda: self.loss(support))
      path.append(
        [
          u - self.rate * (gi + self.wd * u)
          for u, gi in zip(path[-1], g, strict=True)
        ]
      )
    vector = self.gradient_at(path.pop(), lambda: self.loss(query))
    for u in reversed(path):
      product = self.hessian_times(u, lambda: self.loss(support), vector)
      vector = [
        v - self.rate * (h + self.wd * v)
        for v, h in zip(vector, product, strict=True)
      ]
    return vector

  def proto_gradient(self, w, support, query):
    def loss():
      features, labels = self.feature(support[0]), np.array(support[1])
      known = sorted(set(labels))
      centers = [
        tf.reduce_mean(features[labels == label], axis=0) for label in known
      ]
      losses = []
      queries = self.feature(query[0])
      for feature, label in zip(queries, query[1].numpy(), strict=True):
        if label in known:
          logits = tf.stack(
            [-tf.reduce_sum((feature - center) ** 2) for center in centers]
          )
          losses.append(-tf.nn.log_softmax(logits)[known.index(label)])
      return tf.reduce_sum(losses) / max(len(losses), 1)

    return self.gradient_at(w, loss)

  def gradient(self, w, batches):
    if self.kind == 'maml':
      return self.maml_gradient(w, *batches)
    if self.kind == 'proto':
      return self.proto_gradient(w, *batches)
    return self.gradient_at(w, lambda: self.loss(batches[0]))

  def round(self, participants):
    """Takes pairs of a device's number and its batches."""
    beta = self.beta * self.decay**self.t
    start, h = self.selected, self.mean_kept()
    if self.alpha is not None:
      start = [w - k / self.alpha for w, k in zip(start, h, strict=True)]
    ends = []
    for i, batches in participants:
      w = start
      group = 1 if self.kind == 'none' else 2
      num_steps = len(batches) // group
      for k in range(num_steps):
        g = self.gradient(w, batches[group * k : group * (k + 1)])
        for j in range(len(g)):
          if self.alpha is not None:
            g[j] += -self.kept[i][j] + self.alpha * (w[j] - start[j])
          elif self.scaf:
            g[j] += h[j] - self.kept[i][j]
        norm = np.sqrt(sum(np.sum(gj**2) for gj in g))
        scale = min(1, self.max_norm / norm)
        self.was_clipped = scale < 1
        w = [
          wj - beta * (scale * gj + self.wd * wj)
          for wj, gj in zip(w, g, strict=True)
        ]
      ends.append(w)
      self.newest[i] = w
      if self.alpha is not None:
        self.kept[i] = [
          k - self.alpha * (wj - s)
          for k, wj, s in zip(self.kept[i], w, start, strict=True)
        ]
      elif self.scaf:
        self.kept[i] = [
          k - c + (s - wj) / (num_steps * beta)
          for k, c, wj, s in zip(self.kept[i], h, w, start, strict=True)
        ]
    self.selected = [np.mean(ws, axis=0) for ws in zip(*ends, strict=True)]
    self.t += 1


def convolutional_network():
  tf.keras.utils.set_random_seed(3)
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input((6, 6, 1)),
      tf.keras.layers.Conv2D(3, 3, activation='tanh'),
      tf.keras.layers.AveragePooling2D(2),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(5, 'tanh'),
      tf.keras.layers.Dense(4),
    ]
  )


@pytest.mark.parametrize(
  ('personalization', 'alpha', 'scaf', 'options'),
  [
    ('none', None, False, {'decay': 0.5, 'wd': 0.1}),
    ('maml', None, False, {'max_norm': 0.3}),
    ('none', 0.3, False, {'wd': 0.02, 'max_norm': 0.2}),
    ('maml', 0.05, False, {'decay': 0.7, 'wd': 0.05}),
    ('proto', 1.0, False, {'m': 7, 'max_norm': 0.5}),
    ('none', None, True, {'decay': 0.6, 'm': 11}),
    ('maml', None, True, {'decay': 0.9, 'wd': 0.05, 'max_norm': 0.3}),
    ('proto', None, True, {'wd': 0.01}),
  ],
)
def test_a_convolutional_network_follows_the_plain_loop(
  tmp_path, personalization, alpha, scaf, options
):
  options = {
    'beta': 0.3,
    'decay': 1.0,
    'wd': 0.0,
    'max_norm': 10.0,
    'm': 5,
    **options,
  }
  maml_steps, maml_rate = 3, 0.2
  correction = corrections.NoCorrection()
  if alpha is not None:
    correction = corrections.Dyn(alpha)
  elif scaf:
    correction = corrections.Scaf()
  spec = (tf.TensorSpec([None, 6, 6, 1]), tf.TensorSpec([None], tf.int32))
  process = learning_process.build_learning_process(
    models.from_keras(convolutional_network(), problems.CLASSIFIER_LOSS, spec),
    {
      'none': NONE,
      'maml': personalizations.Maml(maml_steps, maml_rate),
      'proto': PROTO,
    }[personalization],
    correction,
    learning_rate_fn=method.exponential_decay(
      options['beta'], options['decay']
    ),
    weight_decay=options['wd'],
    max_grad_norm=options['max_norm'],
    num_clients=options['m'],
    storage=storage_lib.ClientStorage(tmp_path),
    track_all=True,
  )
  loop = PlainLoop(
    convolutional_network(),
    (personalization, maml_steps, maml_rate),
    alpha,
    scaf,
    **options,
  )
  random = np.random.RandomState(0)
  x = random.normal(size=(options['m'], 9, 6, 6, 1)).astype(np.float32)
  y = random.randint(0, 4, size=(options['m'], 9)).astype(np.int32)
  state = process.initialize()
  for selected in ([0, 2, 4], [1, 2], [4], [0, 1, 2, 3, 4]):
    # Each device has another number of batches, and often an odd one, which
    # leaves one over. Batches are of 4, 4 and 1 examples in turn.
    participants = [
      (i, problems.client(f'{i}', x[i], y[i], 3 + i, batch_size=4))
      for i in selected
    ]
    state, _ = process.next(state, [client for _, client in participants])
    loop.round([(i, list(client['data'])) for i, client in participants])
    for found, expected in (
      (process.get_model_weights(state), loop.selected),
      (learning_process.get_all_model_weights(state), loop.all),
    ):
      for weight, other in zip(found.trainable, expected, strict=True):
        np.testing.assert_allclose(weight, other, rtol=0, atol=1e-5)
  if options['max_norm'] < 10:
    assert loop.was_clipped, 'The test does not see the clipping.'
