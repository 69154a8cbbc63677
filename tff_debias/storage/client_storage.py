"""The clients' own storage, read and written inside of TensorFlow graphs.

A folder stands for the private disks of all devices:

    RUN/states/CLIENT/ROUND-TOKEN          the state of a client after a round
    RUN/rounds/ROUND/TOKEN/NOISE-CLIENT    empty: the client wrote in the round
    RUN/checkpoints/VERSION-ROUND-TOKEN    empty: a checkpoint ends with a round

RUN is a random number of the run, CLIENT the client id in base64. The server
draws TOKEN when it begins a round, sends it to the round's clients, and gets it
back with what they report. A server state carries a `Lineage`, the tokens of
all its rounds. A client reads its newest state that has one of these tokens, so
it never reads a state of another attempt at a round: of one that failed, of one
that was cancelled while its clients were writing, or of one at the same time. A
state is never changed.

A context that runs the clients of a round in parts, as on several workers,
draws a token for each part. A token begins with the time, so the parts of a
round are neighbours among all attempts at it.
"""

from collections.abc import Sequence
import os
from typing import NamedTuple

import tensorflow as tf

from tff_debias import checks

_MAX_ID_BYTES = 175
_FINGERPRINTS = 2**31
# `ROUND-TOKEN`, and the end of an entry's path, with its token and its client.
_STATES = '?' * 9 + '-' + '?' * 19
_ENTRY = r'(?s).*/(\d{19})/\d{6}-(.*)='


class ClientStorageError(ValueError):
  """A folder of client states that cannot be used."""


class Lineage(NamedTuple):
  """The states of clients that belong to a server state.

  Attributes:
    run: The number of the run, int64.
    tokens: The number and the token of each round, int64 `[tokens, 2]`. A round
      that ran in parts has several rows.
    num_clients: How many clients have a state, int32.
  """

  run: tf.Tensor
  tokens: tf.Tensor
  num_clients: tf.Tensor


def start_lineage() -> Lineage:
  """The lineage of a new run, in which no client has a state."""
  # Of unknown length, because it grows in every round.
  tokens = tf.raw_ops.PlaceholderWithDefault(
    input=tf.zeros([0, 2], tf.int64), shape=[None, 2]
  )
  return Lineage(_random(tf.int64.max), tokens, tf.constant(0))


def new_token() -> tf.Tensor:
  """Draws the token of an attempt at a round, an int64 scalar of 19 digits."""
  now = tf.cast(tf.timestamp() * 1e6, tf.int64)
  return now * 1024 + _random(1024)


class ClientStorage:
  """A folder of client states.

  All workers that may simulate a client must see the same folder. Any number of
  runs can share it. With checkpoints, wrap the program state manager in a
  `StorageStateManager`. The disk must tell capital from small letters.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    """Names the folder; nothing is written yet.

    Args:
      folder: A path on this machine, without wildcards.

    Raises:
      ClientStorageError: If the path is empty or has one of these.
    """
    folder = os.fspath(folder)
    if not folder or set(folder) & set('*?[]\\'):
      raise ClientStorageError(
        'The folder of a client storage must be a path without any of'
        f' * ? [ ] \\, got {folder!r}.'
      )
    self.folder = os.path.abspath(folder)

  def make_folder(self) -> None:
    """Makes the folder, for the present user only; `OSError` if it cannot."""
    os.makedirs(self.folder, mode=0o700, exist_ok=True)

  def read(
    self, lineage: Lineage, client_id: tf.Tensor, initial: Sequence[tf.Tensor]
  ) -> tuple[list[tf.Tensor], tf.Tensor]:
    """A client's newest state of a lineage.

    Args:
      lineage: The lineage of the server state.
      client_id: A string scalar of 175 bytes at most; a longer one is an
        `InvalidArgumentError`.
      initial: The state of a client that has none, float32.

    Returns:
      The state, like `initial`, and whether the client had none, a bool scalar.
    """
    client_id = checks.ensure(
      tf.strings.length(client_id) <= _MAX_ID_BYTES,
      [f'A client id must have at most {_MAX_ID_BYTES} bytes, got', client_id],
      client_id,
    )
    name = _name(client_id)
    files = tf.io.matching_files(self._path(lineage, 'states', name, _STATES))
    rounds = tf.strings.to_number(tf.strings.substr(files, -29, 9), tf.int64)
    tokens = tf.strings.to_number(tf.strings.substr(files, -19, 19), tf.int64)
    names = tf.stack([rounds, tokens], axis=1)
    is_same = tf.reduce_all(
      tf.equal(names[:, tf.newaxis], lineage.tokens), axis=2
    )
    belongs = tf.reduce_any(is_same, axis=1)
    # TensorFlow sorts them by name, so by round.
    files = tf.boolean_mask(files, belongs)
    is_first = tf.equal(tf.size(files), 0)
    state = tf.cond(
      is_first,
      lambda: list(initial),
      lambda: _unpack(tf.io.read_file(files[-1]), initial),
    )
    return state, is_first

  def write(
    self,
    lineage: Lineage,
    token: tf.Tensor,
    client_id: tf.Tensor,
    state: Sequence[tf.Tensor],
  ) -> tf.Tensor:
    """Writes a client's state after the round that follows a lineage.

    Args:
      lineage: The lineage of the server state before the round.
      token: The token of the round.
      client_id: As in `read`.
      state: The state, float32.

    Returns:
      The token's fingerprint, from 1 to 2^31, an int64 scalar that exists only
      once the state is written. What the graph returns must be made of it:
      TensorFlow's optimizer can remove a control dependency, and the write with
      it.
    """
    round_name = _digits(_num_rounds(lineage) + 1, 9)
    token_name = _digits(token, 19)
    name = _name(client_id)
    # The noise tells two entries of a client in one round apart.
    entry_name = tf.strings.join([_digits(_random(10**6), 6), name], '-')
    state_name = tf.strings.join([round_name, token_name], '-')
    entry = self._path(lineage, 'rounds', round_name, token_name, entry_name)
    # The entry first: also after a crash, no state is without an entry.
    with tf.control_dependencies([tf.io.write_file(entry, '')]):
      written = tf.io.write_file(
        self._path(lineage, 'states', name, state_name), _pack(state)
      )
    with tf.control_dependencies([written]):
      return _fingerprint(token)

  def finish_round(
    self,
    lineage: Lineage,
    num_written: tf.Tensor,
    num_new: tf.Tensor,
    fingerprints: tf.Tensor,
  ) -> Lineage:
    """The lineage after a round, on the server.

    The graph fails with an `InvalidArgumentError` if a client took part twice,
    or if the states that clients wrote are not in the folder.

    Args:
      lineage: The lineage before the round.
      num_written: How many clients wrote a state, an int32 scalar.
      num_new: How many of them had none before, an int32 scalar.
      fingerprints: The sum of what `write` returned, an int64 scalar.

    Returns:
      The lineage.
    """
    round_num = _num_rounds(lineage) + 1
    entries = tf.io.matching_files(
      self._path(lineage, 'rounds', _digits(round_num, 9), '*', '*=')
    )
    # TensorFlow sorts them by name, so by token.
    tokens = tf.strings.to_number(
      tf.strings.regex_replace(entries, _ENTRY, r'\1'), tf.int64
    )
    sums = tf.cumsum(tf.concat([[0], _fingerprint(tokens)], axis=0))
    first = tf.range(tf.maximum(tf.size(tokens) - num_written + 1, 0))
    sums = tf.gather(sums, first + num_written) - tf.gather(sums, first)
    matches = tf.boolean_mask(first, tf.equal(sums, fingerprints))
    matches = checks.ensure(
      tf.size(matches) > 0,
      [
        f'{self.folder} lacks states that clients wrote in this round. All'
        ' workers must see the same folder. If the round ran in parts, another'
        ' attempt at it may have come between: run it again.'
      ],
      matches,
    )
    first = matches[-1]
    entries = entries[first : first + num_written]
    names, _, counts = tf.unique_with_counts(
      tf.strings.regex_replace(entries, _ENTRY, r'\2')
    )
    tokens = checks.ensure(
      tf.reduce_all(counts < 2),
      [
        'A client must take part once in a round, but this one did more:',
        tf.io.decode_base64(tf.boolean_mask(names, counts > 1)[:1]),
      ],
      tokens[first : first + num_written],
    )
    # A round of nobody has a token too, or it would not count as a round.
    tokens = tf.cond(
      num_written > 0,
      lambda: tf.unique(tokens).y,
      lambda: new_token()[tf.newaxis],
    )
    rows = tf.stack([tf.fill(tf.shape(tokens), round_num), tokens], axis=1)
    return Lineage(
      lineage.run,
      tf.concat([lineage.tokens, rows], axis=0),
      lineage.num_clients + num_new,
    )

  def _path(self, lineage: Lineage, *parts: str | tf.Tensor) -> tf.Tensor:
    run = tf.strings.as_string(lineage.run)
    return tf.strings.join([self.folder, run, *parts], '/')


def _name(client_id: tf.Tensor) -> tf.Tensor:
  """The id in base64; the = at its end makes a name of an empty id too."""
  return tf.strings.join([tf.io.encode_base64(client_id), '='])


def _num_rounds(lineage: Lineage) -> tf.Tensor:
  return tf.reduce_max(tf.concat([[0], lineage.tokens[:, 0]], axis=0))


def _fingerprint(token: tf.Tensor) -> tf.Tensor:
  """A number of a token that many clients can add up, also in a secure sum."""
  return 1 + token % _FINGERPRINTS


def _digits(number: tf.Tensor, width: int) -> tf.Tensor:
  return tf.strings.as_string(number, width=width, fill='0')


def _random(limit: int) -> tf.Tensor:
  """An int64 scalar from 1 to below a limit."""
  # Seeds of 0 ignore the seed of the program, which many runs may share.
  return tf.raw_ops.RandomUniformInt(
    shape=tf.zeros([0], tf.int32),
    minval=tf.constant(1, tf.int64),
    maxval=tf.constant(limit, tf.int64),
    seed=0,
    seed2=0,
  )


def _pack(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
  flat = tf.concat([tf.reshape(t, [-1]) for t in tensors], axis=0)
  return tf.io.serialize_tensor(flat)


def _unpack(content: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  flat = tf.io.parse_tensor(content, tf.float32)
  parts = tf.split(flat, [t.shape.num_elements() for t in like])
  return [tf.reshape(p, t.shape) for p, t in zip(parts, like, strict=True)]
