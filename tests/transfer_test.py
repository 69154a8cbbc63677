import pytest
import small_models
import tensorflow as tf

from tff_debias import corrections
from tff_debias import transfer


def test_a_round_adds_models_and_bytes():
  total = transfer.no_transfer()
  assert (float(total['models']), int(total['bytes'])) == (0, 0)
  model = (tf.zeros([2, 3]), tf.zeros([4]))
  for num_clients in (2.0, 3.0):
    total = transfer.add_round(
      total,
      tf.constant(num_clients),
      model,
      (model, (tf.zeros([5]),)),
      transfer.tensor_bytes((model, tf.zeros([5]), tf.constant(1, tf.int64))),
    )
  assert total['models'] == 5 * 1.5
  assert total['bytes'] == 5 * (15 * 4 + 8)


@pytest.mark.parametrize(
  ('correction', 'track_all', 'down', 'up', 'hparams'),
  [
    (corrections.NoCorrection(), False, 1, 1, 2),
    (corrections.Dyn(0.5), False, 1, 1, 3),
    (corrections.Scaf(), False, 2, 2, 2),
    (corrections.Scaf(equal_steps=True), False, 2, 1, 2),
    (corrections.NoCorrection(), True, 1, 2, 2),
    (corrections.Dyn(0.5), True, 1, 2, 3),
    (corrections.Scaf(), True, 2, 3, 2),
    (corrections.Scaf(equal_steps=True), True, 2, 2, 2),
  ],
)
def test_all_that_is_sent_is_counted(
  runtime, tmp_path, correction, track_all, down, up, hparams
):
  process = small_models.linear_process(
    correction, tmp_path, track_all=track_all
  )
  state = process.initialize()
  # Models of three weights. Besides them a client receives the round, the
  # learning rate, the weight decay and the hyperparameters. It reports six
  # numbers of 4 bytes and two of 8; with its newest model, also a 1. If it has
  # a state, it receives 20 bytes of the lineage and 16 for each round before,
  # and reports a receipt of 20.
  keeps_state = track_all or not isinstance(
    correction, corrections.NoCorrection
  )
  total = received_bytes = 0
  for round_num, clients in enumerate(([0, 1], [2], [], [0, 1, 2])):
    total += len(clients)
    received_bytes += len(clients) * (
      down * 12 + 12 + 4 * hparams + keeps_state * (20 + 16 * round_num)
    )
    state, metrics = process.next(
      state, [small_models.linear_client(i) for i in clients]
    )
    sent, received = metrics['distributor'], metrics['aggregator']
    assert (sent['models'], received['models']) == (total * down, total * up)
    assert sent['bytes'] == received_bytes
    assert received['bytes'] == total * (
      up * 12 + 40 + 4 * track_all + 20 * keeps_state
    )
  nan = small_models.linear_client(3, data=small_models.NAN)
  metrics = process.next(state, [nan]).metrics
  assert metrics['distributor']['models'] == 7 * down
  assert metrics['aggregator']['models'] == 7 * up
