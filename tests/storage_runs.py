"""Runs with a client storage, and the same in NumPy without one."""

import base64
import functools
import pathlib

import numpy as np
import small_models
import tensorflow as tf

import tff_debias
from tff_debias import storage as storage_lib

INITIAL = (tf.zeros([3]), tf.zeros([2, 2]))
NUM_CLIENTS = 5
ALPHA = 0.5
_RATE = 0.1
_NUM_STEPS = 3
_DATA = small_models.linear_data(NUM_CLIENTS)


@functools.cache
def graphs(folder):
  """The functions of a storage as graphs, which are faster than eager ones."""
  storage = storage_lib.ClientStorage(folder)
  number = functools.partial(tf.TensorSpec, [])
  lineage = storage_lib.Lineage(
    number(tf.int64), tf.TensorSpec([None, 2], tf.int64), number(tf.int32)
  )
  state = [tf.TensorSpec(tensor.shape) for tensor in INITIAL]
  read = [lineage, number(tf.string)]
  write = [lineage, number(tf.int64), number(tf.string), state]
  finish = [lineage, number(tf.int32), number(tf.int32), number(tf.int64)]
  return (
    tf.function(lambda *args: storage.read(*args, INITIAL), read),
    tf.function(storage.write, write),
    tf.function(storage.finish_round, finish),
  )


class Run:
  """A run whose rounds only write states that are one number."""

  def __init__(self, folder, lineage=None):
    self.storage = storage_lib.ClientStorage(folder)
    self.lineage = lineage or storage_lib.start_lineage()
    self._read, self._write, self._finish = graphs(self.storage.folder)

  @property
  def folder(self):
    return pathlib.Path(self.storage.folder, str(int(self.lineage.run)))

  @property
  def saved(self):
    """The lineage as a checkpoint has it."""
    return storage_lib.Lineage(*(part.numpy() for part in self.lineage))

  def write(self, client_id, value, token):
    """Writes a state in the next round; gives what its client reports."""
    tensors = [tf.fill([3], float(value)), tf.fill([2, 2], float(-value))]
    client_id = tf.constant(client_id)
    _, is_first = self._read(self.lineage, client_id)
    fingerprint = self._write(self.lineage, token, client_id, tensors)
    return int(is_first), int(fingerprint)

  def finish(self, reports):
    """The run after a round; this one is as before it."""
    num_new, fingerprints = np.reshape(reports, [-1, 2]).sum(axis=0)
    lineage = self._finish(
      self.lineage,
      tf.constant(len(reports)),
      tf.constant(num_new, tf.int32),
      tf.constant(fingerprints, tf.int64),
    )
    return Run(self.storage.folder, lineage)

  def round(self, values):
    """The run after a round of clients with values."""
    token = storage_lib.new_token()
    return self.finish([self.write(*item, token) for item in values.items()])

  def read(self, client_id):
    """The value of a client; 0 if it has none."""
    tensors, is_first = self._read(self.lineage, tf.constant(client_id))
    value = float(tensors[0][0])
    assert bool(is_first) == (value == 0)
    np.testing.assert_array_equal(tensors[0], np.full(3, value))
    np.testing.assert_array_equal(tensors[1], np.full((2, 2), -value))
    return value


def build(folder):
  """A process whose clients keep their states in a folder."""
  return tff_debias.build_fed_dyn(
    small_models.linear_model(),
    alpha=ALPHA,
    num_clients=NUM_CLIENTS,
    storage=storage_lib.ClientStorage(folder),
    learning_rate=_RATE,
  )


def clients(*numbers):
  """Participants."""
  return [
    small_models.client(f'client {i}', *_DATA[i % NUM_CLIENTS], _NUM_STEPS)
    for i in numbers
  ]


def without_data(i):
  """A participant that is left out."""
  return small_models.client(f'client {i}', *_DATA[i], 0)


def expected(*rounds):
  """The model and h after rounds of these participants."""
  model = h = np.zeros((3, 1))
  lambdas = [np.zeros((3, 1))] * NUM_CLIENTS
  for participants in rounds:
    if not participants:
      continue
    start, ends = model - h / ALPHA, []
    for i in participants:
      x, y = _DATA[i]
      w = start
      for _ in range(_NUM_STEPS):
        slope = 2 * x.T @ (x @ w - y) / len(x)
        w = w - _RATE * (slope + ALPHA * (w - start) - lambdas[i])
      lambdas[i] = lambdas[i] - ALPHA * (w - start)
      ends.append(w)
    model, h = np.mean(ends, axis=0), np.mean(lambdas, axis=0)
  return model, h


def assert_is_after(state, *rounds):
  """Checks a server state against the rounds of a run alone."""
  assert_equals(
    state.global_model_weights.trainable[0],
    state.finalizer['mean_states'][0][0],
    *rounds,
  )


def assert_equals(model, h, *rounds):
  """Checks the model and h against the rounds of a run alone."""
  for found, wanted in zip((model, h), expected(*rounds), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def state_files(folder, client_id='*'):
  """The files of all states, or of those of a client, sorted by round."""
  if client_id != '*':
    client_id = base64.urlsafe_b64encode(client_id.encode()).decode()
    client_id = client_id.rstrip('=') + '='
  paths = pathlib.Path(folder).glob(f'*/states/{client_id}/*')
  return sorted(paths, key=lambda path: path.name)
