"""The device's own storage: where its correction lives between rounds.

Under `folder`, which stands for the private disks of all devices:

    storage.json                     whose states these are
    devices/SHARD/NAME/ROUND.index   a state as a TensorFlow checkpoint, the
    devices/SHARD/NAME/ROUND.data-…  version that the device left in that round
    devices/SHARD/NAME/client_id     whose they are, for people who look
    journal/ROUND/SHARD-NAME         which devices wrote in that round

NAME is made of two keyed hashes of the client id, so that no id, however
hostile, names a path; the id itself is in the file and is compared when it is
read, so that no two devices share a state.

A round reads the newest version of an earlier round and writes its own: a round
that is run again reads and writes the same, and counts once.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import re
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

_FORMAT = 1
_HASH_KEYS = ([0x7F4A7C15, 0x9E3779B9], [0x1CE4E5B9, 0xBF58476D])
_NUM_SHARDS = 1000
_VERSION = re.compile(r'^(\d{9})\.(index|data-\d+-of-\d+)$')


class ClientStorageError(ValueError):
  """The folder cannot be used, and why."""


class ClientStorage:
  """A folder of device states, read and written inside the client's graph.

  The folder must be the same for all workers that may simulate a device. Under
  `tff.simulation` and a `tff.program.ProgramStateManager`, wrap the manager in
  a `StorageStateManager`; a loop of your own calls `rollback` with the round
  that it resumes from, and `prune` after it has saved a checkpoint.
  """

  def __init__(self, folder: str | os.PathLike[str], run: str | None = None):
    """Names the folder; nothing is read or written yet.

    Args:
      folder: A path, also of a remote file system that TensorFlow knows. It is
        made if it is not there.
      run: The name of the run that the states belong to. Needed to go on with a
        folder that already holds states; without it the folder must be new.

    Raises:
      ClientStorageError: If the path is empty, or has a wildcard in it.
    """
    self._folder = os.fspath(folder)
    self._run = run
    if '://' not in self._folder and self._folder:
      self._folder = os.path.abspath(self._folder)
    if not self._folder or re.search(r'[*?\[\]\\]', self._folder):
      raise ClientStorageError(
        'The folder of the device storage must be a path without any of'
        f' * ? [ ] \\, got {self._folder!r}.'
      )

  @property
  def folder(self) -> str:
    """The folder's path."""
    return self._folder

  def claim(self, method: Mapping[str, Any]) -> None:
    """Makes the folder the given method's, or refuses it.

    Args:
      method: What the states depend on, as JSON: the method and the shapes of
        its device state.

    Raises:
      ClientStorageError: If the folder belongs to another run, method or model,
        or cannot be read or made. Nothing is changed then.
    """
    try:
      self._claim(method)
    except tf.errors.OpError as e:
      raise ClientStorageError(
        f'The device storage {self._folder} cannot be used: {e.message}.'
      ) from e

  def _claim(self, method: Mapping[str, Any]) -> None:
    wanted = {'format': _FORMAT, 'run': self._run, **method}
    wanted = json.loads(json.dumps(wanted))
    path = os.path.join(self._folder, 'storage.json')
    if tf.io.gfile.exists(path):
      found = self._read_claim(path)
      if self._run is None:
        raise ClientStorageError(
          f'The device storage {self._folder} already holds the states of run'
          f' {found.get("run")!r}. Name that run to go on with it'
          ' (ClientStorage(folder, run=...)), or take a new folder.'
        )
      for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
          raise ClientStorageError(
            f'The device storage {self._folder} belongs to another {key}:'
            f' it has {found.get(key)!r}, this process has'
            f' {wanted.get(key)!r}. Take a new folder, or the {key} that the'
            ' folder was made with.'
          )
      return
    if tf.io.gfile.exists(self._folder) and tf.io.gfile.listdir(self._folder):
      raise ClientStorageError(
        f'{self._folder} is not empty and is no device storage (there is no'
        ' storage.json in it). Take a new folder.'
      )
    tf.io.gfile.makedirs(self._folder)
    with tf.io.gfile.GFile(path + '.new', 'w') as file:
      file.write(json.dumps(wanted, indent=1, sort_keys=True))
    tf.io.gfile.rename(path + '.new', path, overwrite=True)

  def _read_claim(self, path: str) -> dict[str, Any]:
    try:
      with tf.io.gfile.GFile(path) as file:
        found = json.loads(file.read())
      if not isinstance(found, dict):
        raise ValueError('it holds no JSON object')
      return found
    except ValueError as e:
      raise ClientStorageError(
        f'{path} is damaged ({e}); it says whose states these are. Put it'
        ' back from a copy, or take a new folder.'
      ) from e

  def read(
    self,
    client_id: tf.Tensor,
    round_num: tf.Tensor,
    initial: Sequence[tf.Tensor],
  ) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The state that the device had before a round, inside a graph.

    Args:
      client_id: A string scalar, any bytes.
      round_num: The round, a positive int32 scalar.
      initial: The state of a device that has none.

    Returns:
      Whether there was a state (a bool scalar), and the tensors, like
      `initial`. The graph fails with a `DataLossError` if a file is damaged.
    """
    folder = self._path('clients', *self._shard_and_name(client_id))
    files = tf.io.matching_files(tf.strings.join([folder, '*.index'], '/'))
    rounds = tf.strings.to_number(
      tf.strings.regex_replace(files, r'^.*/(\d+)\.index$', r'\1'), tf.int32
    )
    newest = tf.reduce_max(
      tf.concat([[0], tf.boolean_mask(rounds, rounds < round_num)], axis=0)
    )
    found = newest > 0

    def restore() -> list[tf.Tensor]:
      names = ['client_id', *_names(initial)]
      dtypes = [tf.string, *(t.dtype for t in initial)]
      owner, *tensors = tf.raw_ops.RestoreV2(
        prefix=_prefix(folder, newest),
        tensor_names=names,
        shape_and_slices=[''] * len(names),
        dtypes=dtypes,
      )
      same = tf.debugging.Assert(
        tf.equal(owner, client_id),
        ['Two client ids have the same hash:', owner, client_id],
      )
      with _after([same]):
        return [
          tf.ensure_shape(tensor, like.shape)
          for tensor, like in zip(tensors, initial, strict=True)
        ]

    return found, tf.cond(found, restore, lambda: list(initial))

  def write(
    self,
    client_id: tf.Tensor,
    round_num: tf.Tensor,
    tensors: Sequence[tf.Tensor],
  ) -> tf.Tensor:
    """Writes the state that the device has after a round, inside a graph.

    Args:
      client_id: A string scalar, any bytes.
      round_num: The round, a positive int32 scalar.
      tensors: The state.

    Returns:
      A bool scalar, true, which exists only once the state is on the disk. What
      the graph returns must be made of it: TensorFlow's optimizer can remove a
      control dependency, and the write with it.
    """
    shard, name = self._shard_and_name(client_id)
    folder = self._path('clients', shard, name)
    entry = self._path(
      'journal', _version(round_num), tf.strings.join([shard, name], '-')
    )
    # The journal comes first: it may name a device that wrote nothing, but no
    # state is ever without its entry, or it could not be rolled back. The other
    # file makes the folder, which SaveV2 does not.
    before = [
      tf.io.write_file(entry, ''),
      tf.io.write_file(tf.strings.join([folder, 'client_id'], '/'), client_id),
    ]
    with _after(before):
      names = ['client_id', *_names(tensors)]
      saved = tf.raw_ops.SaveV2(
        prefix=_prefix(folder, round_num),
        tensor_names=names,
        shape_and_slices=[''] * len(names),
        tensors=[client_id, *tensors],
      )
    with _after([saved]):
      return tf.constant(True)

  def is_empty(self) -> bool:
    """Whether no device has a state."""
    return not _list(os.path.join(self._folder, 'clients'))

  def prune(self, round_num: int) -> None:
    """Removes what a checkpoint made after `round_num` can no longer need.

    Of the devices that wrote since the last call, the newest version up to that
    round stays, and all later ones.

    Args:
      round_num: The last round that the (oldest kept) checkpoint contains.
    """
    for version, devices in self._journal():
      if version <= round_num:
        for device in devices:
          versions = self._versions(device)
          kept = max((v for v in versions if v <= round_num), default=None)
          self._remove(device, [v for v in versions if v < (kept or 0)])
        self._forget(version)

  def rollback(self, round_num: int) -> None:
    """Removes what was written after `round_num`, before the run resumes there.

    Args:
      round_num: The last round that the loaded checkpoint contains.
    """
    if round_num == 0:
      # Also the states that `prune` has taken out of the journal.
      for name in ('clients', 'journal'):
        folder = os.path.join(self._folder, name)
        if tf.io.gfile.exists(folder):
          tf.io.gfile.rmtree(folder)
    for version, devices in self._journal():
      if version > round_num:
        for device in devices:
          versions = self._versions(device)
          self._remove(device, [v for v in versions if v > round_num], True)
        self._forget(version)

  def _path(self, *parts: str | tf.Tensor) -> tf.Tensor:
    return tf.strings.join([self._folder, *parts], '/')

  def _shard_and_name(self, client_id: tf.Tensor) -> list[tf.Tensor]:
    hashes = [
      tf.strings.to_hash_bucket_strong(client_id, 2**63 - 1, key)
      for key in _HASH_KEYS
    ]
    shard = tf.strings.as_string(hashes[0] % _NUM_SHARDS)
    return [
      shard,
      tf.strings.join([tf.strings.as_string(h) for h in hashes], '_'),
    ]

  def _journal(self) -> list[tuple[int, list[str]]]:
    """The rounds in the journal, and the folders of the devices that wrote."""
    journal = os.path.join(self._folder, 'journal')
    return [
      (
        int(version),
        [
          os.path.join(self._folder, 'clients', *entry.split('-'))
          for entry in _list(os.path.join(journal, version))
        ],
      )
      for version in sorted(_list(journal))
    ]

  def _versions(self, device: str) -> set[int]:
    matches = map(_VERSION.match, _list(device))
    return {int(match[1]) for match in matches if match}

  def _remove(
    self, device: str, versions: Sequence[int], leftovers: bool = False
  ) -> None:
    """Removes versions, and what a process left that was killed in a write.

    Leftovers not while a round may be running, as when a checkpoint is saved:
    what it is writing looks the same.
    """
    for file in _list(device):
      match = _VERSION.match(file)
      remove = int(match[1]) in versions if match else leftovers
      if remove and file != 'client_id':
        tf.io.gfile.remove(os.path.join(device, file))

  def _forget(self, version: int) -> None:
    tf.io.gfile.rmtree(os.path.join(self._folder, 'journal', f'{version:09d}'))


class StorageStateManager(tff.program.ProgramStateManager):
  """A program state manager that keeps the device storage in step with it.

  Loading the latest version, as a run that goes on does, rolls the device
  storage back to it; saving one prunes the storage down to what the oldest
  version that is still kept can need. Versions
  are rounds, as `tff.simulation.run_training_process` and
  `tff.learning.programs.train_model` number them.
  """

  def __init__(
    self, manager: tff.program.ProgramStateManager, storage: ClientStorage
  ):
    """Wraps `manager`, which does the saving, and `storage`."""
    self._manager = manager
    self._storage = storage

  async def get_versions(self) -> list[int] | None:
    """See base class."""
    return await self._manager.get_versions()

  async def load(self, version: int, structure: Any) -> Any:
    """See base class. To go on from there, call the storage's `rollback`."""
    return await self._manager.load(version, structure)

  async def load_latest(self, structure: Any) -> tuple[Any, int]:
    """See base class; for a run that goes on from there.

    Args:
      structure: See base class.

    Returns:
      See base class.

    Raises:
      ClientStorageError: If there is no version, but devices have states.
    """
    state, version = await self._manager.load_latest(structure)
    if state is None and not self._storage.is_empty():
      raise ClientStorageError(
        f'{self._storage.folder} holds states of devices, but there is no'
        ' checkpoint that they belong to. Put the checkpoints back, or take a'
        ' new folder for the devices.'
      )
    self._storage.rollback(version)
    return state, version

  async def save(self, program_state: Any, version: int) -> None:
    """See base class."""
    await self._manager.save(program_state, version)
    # The checkpoint of round 0, which managers like to keep, needs no state.
    versions = await self._manager.get_versions()
    self._storage.prune(min((v for v in versions if v > 0), default=0))

  async def remove_all(self) -> None:
    """See base class."""
    await self._manager.remove_all()
    self._storage.rollback(0)


def _after(operations: Sequence[tf.Operation | None]):
  """Control dependencies; eagerly (in tests) an operation is done, and None."""
  return tf.control_dependencies([op for op in operations if op is not None])


def _names(tensors: Sequence[tf.Tensor]) -> list[str]:
  return [f'state/{i}' for i in range(len(tensors))]


def _version(round_num: tf.Tensor) -> tf.Tensor:
  return tf.strings.as_string(round_num, width=9, fill='0')


def _prefix(folder: tf.Tensor, round_num: tf.Tensor) -> tf.Tensor:
  return tf.strings.join([folder, _version(round_num)], '/')


def _list(folder: str) -> list[str]:
  if not tf.io.gfile.exists(folder):
    return []
  return [name.rstrip('/') for name in tf.io.gfile.listdir(folder)]
