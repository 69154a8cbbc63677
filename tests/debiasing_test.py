"""The claim itself: corrected methods reach the optimum, uncorrected do not.

Clients with quadratic losses of their own. A step of MAML is affine then, so
the meta-objective is quadratic as well and its optimum is known exactly.
"""

import numpy as np
import pytest
import small_models
import tensorflow as tf

from tff_debias import corrections
from tff_debias import learning_process
from tff_debias import personalizations
from tff_debias import storage as storage_lib

pytestmark = pytest.mark.usefixtures('runtime')

NUM_CLIENTS = 4
LOCAL_STEPS = 5
WEIGHT_DECAY = 0.3
PERSONALIZATIONS = {
  'none': personalizations.NoPersonalization(),
  'maml': personalizations.Maml(num_steps=2, learning_rate=0.1),
}


def make_data():
  """Clients that differ, with all eigenvalues of 2 X'X/n from 0.5 to 3."""
  random = np.random.RandomState(3)
  clients = []
  for _ in range(NUM_CLIENTS):
    x = np.linalg.qr(random.normal(size=(8, 3)))[0] * 2
    x = x * np.sqrt(random.uniform(0.5, 3, size=3))
    x = x @ np.linalg.qr(random.normal(size=(3, 3)))[0]
    truth = random.normal(size=(3, 1)) * 1.5 + 1
    y = x @ truth + 0.1 * random.normal(size=(8, 1))
    clients.append((x.astype(np.float32), y.astype(np.float32)))
  return clients


def meta_gradient(personalization, x, y):
  """M and q of the gradient M w - q of a client's meta-loss, in float64."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  hessian, b = 2 * x.T @ x / len(x), 2 * x.T @ y / len(x)
  # T(w) = slope · w + offset
  slope, offset = np.eye(3), np.zeros((3, 1))
  if isinstance(personalization, personalizations.Maml):
    a = personalization.learning_rate
    step = np.eye(3) - a * (hessian + WEIGHT_DECAY * np.eye(3))
    for _ in range(personalization.num_steps):
      slope, offset = step @ slope, step @ offset + a * b
  return slope.T @ hessian @ slope, slope.T @ (b - hessian @ offset)


@pytest.fixture(params=PERSONALIZATIONS)
def problem(request):
  """The personalization, the data, and each client's slope at the optimum."""
  personalization = PERSONALIZATIONS[request.param]
  data = make_data()
  parts = [meta_gradient(personalization, x, y) for x, y in data]
  parts = [(m + WEIGHT_DECAY * np.eye(3), q) for m, q in parts]
  m, q = (np.mean(part, axis=0) for part in zip(*parts, strict=True))
  optimum = np.linalg.solve(m, q)
  slopes = [m_i @ optimum - q_i for m_i, q_i in parts]
  # The clients disagree at the optimum: there is a bias to be removed.
  assert min(np.linalg.norm(slope) for slope in slopes) > 0.1
  return personalization, data, optimum, slopes


class Runner:
  """Runs rounds and records how far the selected model is from the optimum."""

  def __init__(self, problem, correction, folder):
    self.personalization, self.data, self.optimum, _ = problem
    self.storage = storage_lib.ClientStorage(folder)
    self.process = learning_process.build_learning_process(
      small_models.linear_model(),
      self.personalization,
      correction,
      learning_rate=0.2,
      weight_decay=WEIGHT_DECAY,
      max_grad_norm=float('inf'),
      num_clients=NUM_CLIENTS,
      storage=self.storage,
    )

  def run(self, name, num_participants, num_rounds):
    """Returns the final state, and the distances after each round."""
    random = np.random.RandomState(0)
    state = self.process.initialize()
    num_batches = LOCAL_STEPS * self.personalization.batches_per_step
    clients = [
      small_models.client(f'{name} {i}', x, y, num_batches)
      for i, (x, y) in enumerate(self.data)
    ]
    distances = []
    for _ in range(num_rounds):
      selected = random.permutation(NUM_CLIENTS)[:num_participants]
      participants = [clients[i] for i in selected]
      state, _ = self.process.next(
        state, small_models.participants(self.process, participants)
      )
      distances.append(self.distance(self.process.get_model_weights(state)))
    return state, distances

  def distance(self, weights):
    """‖w - w*‖ / ‖w*‖."""
    difference = weights.trainable[0] - self.optimum
    return np.linalg.norm(difference) / np.linalg.norm(self.optimum)


@pytest.mark.parametrize(
  'correction', [corrections.Dyn(alpha=1.5), corrections.Scaf()]
)
def test_a_corrected_method_reaches_the_optimum(tmp_path, problem, correction):
  runner = Runner(problem, correction, tmp_path)
  for name, num_participants, num_rounds in (('all', 4, 30), ('half', 2, 65)):
    state, distances = runner.run(name, num_participants, num_rounds)
    assert distances[3] > 1e-2
    assert distances[-1] < 1e-5
    # What the server keeps has come to rest, so that for Dyn the model that is
    # broadcast, w - h/α, is the optimum as well.
    ((h,),) = state.finalizer['mean_states']
    np.testing.assert_allclose(h, 0, atol=1e-5)
    # A client keeps just what pulls it away from the optimum.
    for i, slope in enumerate(problem[-1]):
      lineage = storage_lib.Lineage(
        *map(tf.constant, state.client_work['lineage'])
      )
      (kept,), is_first = runner.storage.read(
        lineage, tf.constant(f'{name} {i}'), [tf.zeros([3, 1])]
      )
      assert not is_first
      np.testing.assert_allclose(kept, slope, atol=3e-5)


def test_the_uncorrected_method_stops_at_a_distance(tmp_path, problem):
  runner = Runner(problem, corrections.NoCorrection(), tmp_path)
  _, distances = runner.run('all', 4, 25)
  assert abs(distances[-1] - distances[-5]) < 1e-5, 'It has not settled.'
  assert 1e-2 < distances[-1] < 0.9
  _, distances = runner.run('half', 2, 25)
  assert 1e-2 < min(distances[10:]) < 0.9
