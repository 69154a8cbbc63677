"""The clients' own storage, read and written inside of TensorFlow graphs.

Under `folder`, which stands for the private disks of all devices:

    RUN/clients/SHARD/NAME/client_id             whose states these are
    RUN/clients/SHARD/NAME/ROUND-TOKEN.index     a state, as a TensorFlow
    RUN/clients/SHARD/NAME/ROUND-TOKEN.data-…    checkpoint
    RUN/journal/ROUND/TOKEN-SHARD-NAME           the states written in a round

NAME is made of two keyed hashes of the client id, so that no id, however
hostile, names a path. The id and the token are in the checkpoint too and are
compared when it is read, so that no two clients share a state, and no file is
taken for another. `lineage` explains RUN and TOKEN: a round reads the newest
state that belongs to its server state, and never changes a state that was
written.
"""

from collections.abc import Sequence
import os
import re

import tensorflow as tf

from tff_debias.storage import lineage as lineage_lib
from tff_debias.storage import upkeep

_HASH_KEYS = ([0x7F4A7C15, 0x9E3779B9], [0x1CE4E5B9, 0xBF58476D])
_NUM_SHARDS = 1000
# (?s): a folder may have a line break in its name.
_STATE = r'(?s).*/\d{9}-\d{19}\.index'
_NO_STATE = f'{0:09d}-{0:019d}.index'
_ENTRY = r'(?s).*/(\d{19})-(\d+)-(\d+_\d+)'


class ClientStorage:
  """A folder of client states.

  All workers that may simulate a client must see the same folder. Any number of
  runs can share it. With checkpoints, wrap the program state manager in a
  `StorageStateManager`, which keeps the folder small and notices lost files.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    """Names the folder; nothing is written yet.

    Args:
      folder: A path, also of a remote file system that TensorFlow knows.

    Raises:
      ClientStorageError: If the path is empty, or has a wildcard in it.
    """
    folder = os.fspath(folder)
    if not folder or re.search(r'[*?\[\]\\]', folder):
      raise upkeep.ClientStorageError(
        'The folder of the client storage must be a path without any of'
        f' * ? [ ] \\, got {folder!r}.'
      )
    if '://' not in folder:
      folder = os.path.abspath(folder)
    self.folder = folder

  def make_folder(self) -> None:
    """Makes the folder, for the present user only, if it is not there.

    Raises:
      ClientStorageError: If it cannot be made or written to.
    """
    try:
      if '://' in self.folder:
        tf.io.gfile.makedirs(self.folder)
      else:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
          raise PermissionError(None, 'Permission denied')
    except (OSError, tf.errors.OpError) as e:
      reason = getattr(e, 'strerror', None) or e
      raise upkeep.ClientStorageError(
        f'The client storage {self.folder} cannot be used: {reason}.'
      ) from e

  def read(
    self,
    lineage: lineage_lib.Lineage,
    client_id: tf.Tensor,
    initial: Sequence[tf.Tensor],
  ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
    """The newest state of a client that belongs to a lineage, inside a graph.

    Args:
      lineage: The lineage of the server state.
      client_id: A string scalar, any bytes.
      initial: The state of a client that has none.

    Returns:
      The state, like `initial`; its token, an int64 scalar; and the number of
      rounds since it was written, an int32 scalar. For a client that has no
      state the token is 0, and all rounds of the run count. The graph fails
      with a `DataLossError` at a damaged file, and with an
      `InvalidArgumentError` at the file of another state.
    """
    folder = self._states(lineage, client_id)
    files = tf.io.matching_files(tf.strings.join([folder, '*.index'], '/'))
    # `_NO_STATE` stands for the state of a client that has none, and for a file
    # that is no state. Its round and its token are 0, so any state is newer.
    is_state = tf.strings.regex_full_match(files, _STATE)
    names = tf.where(is_state, files, _NO_STATE)
    names = tf.concat([[_NO_STATE], names], axis=0)
    rounds = tf.strings.to_number(tf.strings.substr(names, -35, 9), tf.int32)
    tokens = tf.strings.to_number(tf.strings.substr(names, -25, 19), tf.int64)
    belongs = lineage_lib.belongs(lineage, rounds, tokens)
    newest = tf.argmax(tf.where(belongs, rounds, -1))
    token = tokens[newest]

    def restore() -> list[tf.Tensor]:
      prefix = _prefix(folder, rounds[newest], token)
      names = _names(initial)
      owner, found, *tensors = tf.raw_ops.RestoreV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[''] * len(names),
        dtypes=[tf.string, tf.int64, *(tensor.dtype for tensor in initial)],
      )
      is_owner = tf.debugging.Assert(
        tf.equal(owner, client_id),
        ['Two client ids have the same hash:', owner, client_id],
      )
      is_same = tf.debugging.Assert(
        tf.equal(found, token),
        [
          'The file of a client state holds another state:',
          prefix,
          # A number would put the check into a branch of its own.
          tf.strings.as_string(found),
        ],
      )
      with _after([is_owner, is_same]):
        return [
          tf.ensure_shape(tensor, like.shape)
          for tensor, like in zip(tensors, initial, strict=True)
        ]

    state = tf.cond(token > 0, restore, lambda: list(initial))
    return state, token, tf.shape(lineage.windows)[0] - rounds[newest]

  def write(
    self,
    lineage: lineage_lib.Lineage,
    client_id: tf.Tensor,
    tensors: Sequence[tf.Tensor],
  ) -> tf.Tensor:
    """Writes the state of a client after the lineage's next round.

    Args:
      lineage: The lineage of the server state before the round.
      client_id: A string scalar, any bytes.
      tensors: The state.

    Returns:
      The state's token, a positive int64 scalar that exists only once the state
      is written. What the graph returns must be made of it: TensorFlow's
      optimizer can remove a control dependency, and the write with it.
    """
    shard, name = _shard_and_name(client_id)
    folder = self._states(lineage, client_id)
    round_num = tf.shape(lineage.windows)[0] + 1
    token = lineage_lib.new_token()
    entry = tf.strings.join([_token(token), shard, name], '-')
    # The journal comes first: it may name a state that is not there, but there
    # is no state that it does not name. The other file makes the folder, which
    # SaveV2 does not.
    before = [
      tf.io.write_file(tf.strings.join(path, '/'), content)
      for path, content in (
        ([self._journal(lineage, round_num), entry], ''),
        ([folder, 'client_id'], client_id),
      )
    ]
    with _after(before):
      names = _names(tensors)
      saved = tf.raw_ops.SaveV2(
        prefix=_prefix(folder, round_num, token),
        tensor_names=names,
        shape_and_slices=[''] * len(names),
        tensors=[client_id, token, *tensors],
      )
    with _after([saved]):
      return tf.identity(token)

  def finish_round(
    self,
    lineage: lineage_lib.Lineage,
    num_participants: tf.Tensor,
    receipts: lineage_lib.Receipt,
  ) -> lineage_lib.Lineage:
    """The lineage after a round, inside a graph on the server.

    Args:
      lineage: The lineage before the round.
      num_participants: How many clients wrote a state, an int32 scalar.
      receipts: The sum of their receipts.

    Returns:
      The lineage after the round. The graph fails with an
      `InvalidArgumentError` if a client took part twice, or if the states in
      the folder are not those that were reported.
    """
    round_num = tf.shape(lineage.windows)[0] + 1
    entries = tf.io.matching_files(
      tf.strings.join([self._journal(lineage, round_num), '*'], '/')
    )
    entries = tf.boolean_mask(
      entries, tf.strings.regex_full_match(entries, _ENTRY)
    )
    window = tf.cond(
      num_participants > 0,
      lambda: self._window(
        lineage, entries, num_participants, receipts.fingerprint
      ),
      # No token is in it, also not of another attempt at the round.
      lambda: tf.constant([1, 0], tf.int64),
    )
    return lineage._replace(
      windows=tf.concat([lineage.windows, window[tf.newaxis]], axis=0),
      num_clients=lineage.num_clients + receipts.is_new,
      digest=lineage.digest + receipts.change,
    )

  def _window(
    self,
    lineage: lineage_lib.Lineage,
    entries: tf.Tensor,
    size: tf.Tensor,
    fingerprint: tf.Tensor,
  ) -> tf.Tensor:
    """The first and the last token of a round.

    Args:
      lineage: The lineage before the round.
      entries: The journal of the round. In order of time, other attempts at the
        round come before or after it.
      size: How many of the entries are of the round.
      fingerprint: The sum of their fingerprints.

    Returns:
      An int64 tensor `[2]`.
    """
    tokens = tf.strings.to_number(
      tf.strings.regex_replace(entries, _ENTRY, r'\1'), tf.int64
    )
    in_time = tf.argsort(tokens)
    entries, tokens = tf.gather(entries, in_time), tf.gather(tokens, in_time)
    sums = tf.cumsum(lineage_lib.fingerprint(tokens))
    sums = tf.concat([tf.zeros([1], tf.int64), sums], axis=0)
    first = tf.range(tf.maximum(tf.size(tokens) - size + 1, 0))
    sums = tf.gather(sums, first + size) - tf.gather(sums, first)
    matches = tf.boolean_mask(first, tf.equal(sums, fingerprint))
    is_found = tf.debugging.Assert(
      tf.size(matches) > 0,
      [f'The states in {self.folder} are not those that clients reported.'],
    )
    with _after([is_found]):
      first = tf.identity(matches[0])
    names, _, counts = tf.unique_with_counts(
      tf.strings.regex_replace(entries[first : first + size], _ENTRY, r'\2/\3')
    )
    twice = tf.boolean_mask(names, counts > 1)[:1]
    owner = tf.map_fn(
      lambda name: tf.io.read_file(
        tf.strings.join(
          [self.folder, _run(lineage), 'clients', name, 'client_id'], '/'
        )
      ),
      twice,
    )
    is_unique = tf.debugging.Assert(
      tf.equal(tf.size(twice), 0),
      [
        'A client must take part once in a round, but this one did more:',
        owner,
      ],
    )
    with _after([is_unique]):
      return tf.gather(tokens, tf.stack([first, first + size - 1]))

  def _states(
    self, lineage: lineage_lib.Lineage, client_id: tf.Tensor
  ) -> tf.Tensor:
    parts = [_run(lineage), 'clients', *_shard_and_name(client_id)]
    return tf.strings.join([self.folder, *parts], '/')

  def _journal(
    self, lineage: lineage_lib.Lineage, round_num: tf.Tensor
  ) -> tf.Tensor:
    parts = [_run(lineage), 'journal', _round(round_num)]
    return tf.strings.join([self.folder, *parts], '/')


def _shard_and_name(client_id: tf.Tensor) -> list[tf.Tensor]:
  hashes = [
    tf.strings.to_hash_bucket_strong(client_id, 2**63 - 1, key)
    for key in _HASH_KEYS
  ]
  shard = tf.strings.as_string(hashes[0] % _NUM_SHARDS)
  return [
    shard,
    tf.strings.join([tf.strings.as_string(h) for h in hashes], '_'),
  ]


def _after(operations: Sequence[tf.Operation | None]):
  """Control dependencies; eagerly (in tests) an operation is done, and None."""
  return tf.control_dependencies([op for op in operations if op is not None])


def _names(tensors: Sequence[tf.Tensor]) -> list[str]:
  states = [f'state/{i}' for i in range(len(tensors))]
  return ['client_id', 'token', *states]


def _run(lineage: lineage_lib.Lineage) -> tf.Tensor:
  return tf.strings.as_string(lineage.run)


def _round(round_num: tf.Tensor) -> tf.Tensor:
  return tf.strings.as_string(round_num, width=9, fill='0')


def _token(token: tf.Tensor) -> tf.Tensor:
  return tf.strings.as_string(token, width=19, fill='0')


def _prefix(
  folder: tf.Tensor, round_num: tf.Tensor, token: tf.Tensor
) -> tf.Tensor:
  version = tf.strings.join([_round(round_num), _token(token)], '-')
  return tf.strings.join([folder, version], '/')
