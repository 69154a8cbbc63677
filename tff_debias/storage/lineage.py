"""How a server state recognizes the states of clients that belong to it.

Every run has a random number. Every state that a client writes has a token,
made of the time when it was written. The writes of one round follow those of
the round before, also where a round is run again with other participants. So a
window of time for each round tells the states that belong to a server state
from those of another attempt at the same round, and from those of another run.
"""

from typing import NamedTuple

import tensorflow as tf

_MICROSECONDS = 1e6
# The random part of a token, for writes in the same microsecond.
_RANDOM = 1024
_FINGERPRINTS = 2**31


class Lineage(NamedTuple):
  """The states of clients that belong to a server state.

  Attributes:
    run: The number of the run, int64, drawn by `initialize`.
    windows: The first and the last token of each round, int64 `[rounds, 2]`.
    num_clients: How many clients have a state, int32.
    digest: The sum of the fingerprints of their newest states, int64.
  """

  run: tf.Tensor
  windows: tf.Tensor
  num_clients: tf.Tensor
  digest: tf.Tensor


class Receipt(NamedTuple):
  """What a client reports of the state it wrote; 0 where it wrote none.

  Attributes:
    is_new: 1 for a client that had no state before, int32.
    fingerprint: The fingerprint of its new state, int64, below 2^31.
    change: By how much that is above the fingerprint of its old state, int64.
  """

  is_new: tf.Tensor
  fingerprint: tf.Tensor
  change: tf.Tensor


def start_lineage() -> Lineage:
  """The lineage of a new run, in which no client has a state."""
  # Seeds of 0: any seed of the program, which many runs may share, is ignored.
  run = tf.raw_ops.RandomUniformInt(
    shape=tf.zeros([0], tf.int32),
    minval=tf.constant(1, tf.int64),
    maxval=tf.constant(tf.int64.max),
    seed=0,
    seed2=0,
  )
  # Of unknown length, as it grows in every round.
  windows = tf.raw_ops.PlaceholderWithDefault(
    input=tf.zeros([0, 2], tf.int64), shape=[None, 2]
  )
  return Lineage(run, windows, tf.constant(0), tf.constant(0, tf.int64))


def receipt(old_token: tf.Tensor, new_token: tf.Tensor) -> Receipt:
  """The receipt of a client, from the tokens of its states, 0 for none."""
  is_written = new_token > 0
  change = fingerprint(new_token) - fingerprint(old_token)
  return Receipt(
    is_new=tf.cast(is_written & tf.equal(old_token, 0), tf.int32),
    fingerprint=fingerprint(new_token),
    change=tf.where(is_written, change, tf.zeros_like(change)),
  )


def new_token() -> tf.Tensor:
  """The token of a state that is written now, a positive int64 scalar."""
  now = tf.cast(tf.timestamp() * _MICROSECONDS, tf.int64)
  noise = tf.raw_ops.RandomUniformInt(
    shape=tf.zeros([0], tf.int32),
    minval=tf.constant(0, tf.int64),
    maxval=tf.constant(_RANDOM, tf.int64),
    seed=0,
    seed2=0,
  )
  return now * _RANDOM + noise


def fingerprint(token):
  """The fingerprint of a state, from its token; tensors or NumPy arrays."""
  return token % _FINGERPRINTS


def belongs(
  lineage: Lineage, rounds: tf.Tensor, tokens: tf.Tensor
) -> tf.Tensor:
  """Whether states belong to a lineage, bool `[states]`.

  Args:
    lineage: The lineage, of the same run as the states.
    rounds: The rounds in which they were written, int32 `[states]`, from 1.
    tokens: Their tokens, int64 `[states]`.

  Returns:
    True for those of a round that is done, within its window.
  """
  num_rounds = tf.shape(lineage.windows)[0]
  # Row 0, which no token is in, is for states of a later round.
  windows = tf.concat([tf.zeros([1, 2], tf.int64), lineage.windows], axis=0)
  windows = tf.gather(windows, tf.where(rounds <= num_rounds, rounds, 0))
  return (windows[:, 0] <= tokens) & (tokens <= windows[:, 1])
