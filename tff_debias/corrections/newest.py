"""Each client's newest model, of which the model *all* is the mean."""

import tensorflow as tf

from tff_debias.corrections import base


class NewestModel(base.KeptState):
  """A client keeps its newest w_i, and 1; before it took part, zeros.

  The mean over all m clients is then the sum of the newest models over m, and
  the share of the clients that took part. A round sends one more model up.
  """

  def initial_state(self, weights):
    """See base class."""
    return (*(tf.zeros_like(w) for w in weights), tf.zeros([]))

  def state_change(self, state, mean_state, work):
    """See base class."""
    models = tuple(w + u for w, u in zip(work.start, work.update, strict=True))
    return tuple(
      new - old for new, old in zip((*models, 1.0), state, strict=True)
    )


def all_model(mean_state: base.State, initial: base.Weights) -> base.Weights:
  """The model *all*: the mean over all m clients of each one's newest w_i.

  Args:
    mean_state: The mean of `NewestModel`.
    initial: The initial model, the newest of a client that never took part.

  Returns:
    The trainable weights.
  """
  *sums, share = mean_state
  return tuple(s + (1 - share) * w for s, w in zip(sums, initial, strict=True))
