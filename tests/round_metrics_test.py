import numpy as np
import pytest
import reference
import small_models
import tensorflow as tf

from tff_debias import algorithm
from tff_debias import corrections
from tff_debias import personalizations

pytestmark = pytest.mark.usefixtures('runtime')

DYN = corrections.Dyn(alpha=0.5)
DATA, NAN = small_models.DATA, small_models.NAN
build, client = small_models.linear_process, small_models.linear_client


def test_the_metrics_of_a_round(tmp_path):
  model = small_models.linear_model(
    metrics=lambda: [tf.keras.metrics.MeanAbsoluteError('error')]
  )
  process = build(DYN, tmp_path, model=model)
  clients = [client(0, 1), client(1, 2), client(2, data=NAN)]
  state, metrics = process.next(process.initialize(), clients)
  loop = reference.DynLoop(
    [np.zeros((3, 1))], reference.squared_gradient, alpha=0.5
  )
  loop.round({i: small_models.batches(clients[i]) for i in (0, 1)})
  # Client 0 takes one step, client 1 two.
  residuals = [
    DATA[i][0] @ w[0] - DATA[i][1]
    for i, (w, _) in zip((0, 1, 1), loop.steps, strict=True)
  ]
  work = metrics['client_work']
  assert list(work['train']) == ['loss', 'error', 'num_examples']
  np.testing.assert_allclose(
    work['train']['loss'], np.mean(np.square(residuals)), rtol=1e-5
  )
  np.testing.assert_allclose(
    work['train']['error'], np.mean(np.abs(residuals)), rtol=1e-5
  )
  assert work['train']['num_examples'] == 24
  assert (work['participants'], work['left_out']) == (2, 1)
  norms = [np.linalg.norm(loop.kept[i]) for i in (0, 1)]
  np.testing.assert_allclose(work['correction_norm'], np.mean(norms), rtol=1e-5)
  finalizer = metrics['finalizer']
  np.testing.assert_allclose(
    finalizer['update_norm'], np.linalg.norm(loop.selected), rtol=1e-5
  )
  np.testing.assert_allclose(
    finalizer['server_correction_norm'],
    np.linalg.norm(reference.mean(loop.kept)),
    rtol=1e-5,
  )
  # A model is three weights of four bytes. Who is left out gets and sends one.
  assert metrics['distributor'] == {'models': 3, 'bytes': 3 * 12}
  for numbers, total in (([], 3), ([3, 0], 5)):
    state, metrics = process.next(state, [client(i) for i in numbers])
    for part in ('distributor', 'aggregator'):
      assert metrics[part]['models'] == total
      assert metrics[part]['bytes'] == 12 * total


@pytest.mark.parametrize(
  ('correction', 'track_all', 'down', 'up'),
  [
    (corrections.NoCorrection(), False, 1, 1),
    (corrections.Prox(0.5), False, 1, 1),
    (DYN, False, 1, 1),
    (corrections.Scaf(), False, 2, 2),
    (corrections.Scaf(num_steps=3), False, 2, 1),
    (corrections.NoCorrection(), True, 1, 2),
    (DYN, True, 1, 2),
    (corrections.Scaf(), True, 2, 3),
    (corrections.Scaf(num_steps=3), True, 2, 2),
  ],
)
def test_the_models_of_a_client_in_a_round(correction, track_all, down, up):
  method = algorithm.Algorithm(
    small_models.linear_model(),
    personalizations.NoPersonalization(),
    correction,
    track_all=track_all,
  )
  assert (method.models_down, method.models_up) == (down, up)
