"""Runs with a client storage, and the same in NumPy without one."""

import os
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


class Run:
  """A run whose rounds only write states that are one number."""

  def __init__(self, folder, lineage=None):
    self.storage = storage_lib.ClientStorage(folder)
    self.storage.make_folder()
    self.lineage = lineage or storage_lib.start_lineage()

  @property
  def folder(self):
    return pathlib.Path(self.storage.folder, str(int(self.lineage.run)))

  def write(self, client_id, value):
    """Writes a state in the next round; gives its receipt."""
    _, token, _ = self.storage.read(
      self.lineage, tf.constant(client_id), INITIAL
    )
    tensors = (tf.fill([3], float(value)), tf.fill([2, 2], float(-value)))
    new = self.storage.write(self.lineage, tf.constant(client_id), tensors)
    return storage_lib.receipt(token, new)

  def finish(self, receipts):
    """The run after a round; this one is as before it."""
    sums = storage_lib.Receipt(
      *(tf.add_n(list(parts)) for parts in zip(*receipts, strict=True))
    )
    lineage = self.storage.finish_round(
      self.lineage, tf.constant(len(receipts)), sums
    )
    return Run(self.storage.folder, lineage)

  def round(self, values):
    """The run after a round of clients with values."""
    return self.finish([self.write(*item) for item in values.items()])

  def read(self, client_id):
    """The value of a client; 0 if it has none."""
    tensors, token, _ = self.storage.read(
      self.lineage, tf.constant(client_id), INITIAL
    )
    value = float(tensors[0][0])
    assert bool(token > 0) == (value != 0)
    np.testing.assert_array_equal(tensors[0], np.full(3, value))
    np.testing.assert_array_equal(tensors[1], np.full((2, 2), -value))
    return value


def build(folder, correction=None, **options):
  """A process whose clients keep their states in a folder."""
  if folder is not None:
    options['storage'] = storage_lib.ClientStorage(folder)
  options.setdefault('num_clients', NUM_CLIENTS)
  return tff_debias.build_learning_process(
    small_models.linear_model(),
    tff_debias.NoPersonalization(),
    correction or tff_debias.Dyn(ALPHA),
    learning_rate=_RATE,
    **options,
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
    state.finalizer['means'][0][0],
    *rounds,
  )


def assert_equals(model, h, *rounds):
  """Checks the model and h against the rounds of a run alone."""
  for found, wanted in zip((model, h), expected(*rounds), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def state_files(folder):
  """The index files of all states, sorted by round and time."""
  paths = [
    os.path.join(root, name)
    for root, _, names in os.walk(folder)
    for name in names
    if name.endswith('.index')
  ]
  return sorted(paths, key=os.path.basename)


def client_folder(folder, client_id):
  """The folder of the one client with an id."""
  (found,) = [
    root
    for root, _, names in os.walk(folder)
    if 'client_id' in names
    and tf.io.gfile.GFile(os.path.join(root, 'client_id'), 'rb').read()
    == client_id.encode()
  ]
  return found
