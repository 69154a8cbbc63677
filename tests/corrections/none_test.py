import tensorflow as tf

from corrections import simulation
from tff_debias import corrections

NONE = corrections.NoCorrection()


def test_nothing_is_added_kept_or_sent():
  weights = (tf.constant([1.0, 2.0]), tf.constant(3.0))
  update = (tf.constant([0.5, 0.5]), tf.constant(1.0))
  assert NONE.allows_server_optimizer
  assert not NONE.is_broadcast
  assert NONE.initial_state(weights) == ()
  assert NONE.gradient_term((), (), weights, weights) is None
  assert NONE.state_change((), (), simulation.work(update, 2.0, 0.1)) == ()
  assert NONE.broadcast_model(weights, ()) is weights
