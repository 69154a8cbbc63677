import numpy as np
import pytest
import reference
import small_models
import tensorflow as tf

from tff_debias import corrections

pytestmark = pytest.mark.usefixtures('runtime')

SCAF_EQUAL = corrections.Scaf(equal_steps=True)
DYN = corrections.Dyn(alpha=0.5)
DATA, NAN = small_models.DATA, small_models.NAN
build, client = small_models.linear_process, small_models.linear_client


def test_steps_are_compared_exactly(tmp_path):
  # The sum of the squares of these numbers of steps needs more than 24 bits.
  data = (np.ones((1, 3), np.float32), np.ones((1, 1), np.float32))
  process = build(SCAF_EQUAL, tmp_path, num_clients=90, learning_rate=0.01)
  clients = [client(i, 501, data) for i in range(90)]
  state, _ = process.next(process.initialize(), clients)
  with pytest.raises(Exception, match='equal_steps'):
    process.next(state, [*clients[:-1], client(89, 500, data)])


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
