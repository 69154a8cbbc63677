"""Keeps the checkpoints of a run whole, and its metrics in step with them."""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
import re
import shutil
from typing import Any

from tensorflow.core.protobuf import saved_model_pb2
import tensorflow_federated as tff

from tasks.runs import errors
from tasks.runs import folder as folder_lib

_PREFIX = 'program_state_'
_CHECKPOINT = re.compile(_PREFIX + r'(\d+)', re.ASCII)
_RECORD = 'record.json'
# The operations in a checkpoint of TFF's. Others could read and write any file.
_OPERATIONS = frozenset(
  [
    *('AssignVariableOp', 'Const', 'DisableCopyOnRead', 'Identity'),
    *('MergeV2Checkpoints', 'NoOp', 'Pack', 'Placeholder', 'ReadVariableOp'),
    *('RestoreV2', 'SaveV2', 'Select', 'ShardedFilename'),
    *('StatefulPartitionedCall', 'StaticRegexFullMatch', 'StringJoin'),
    'VarHandleOp',
  ]
)


class CheckpointError(ValueError):
  """A checkpoint is missing or damaged: which, and what helps."""


class StateManager(tff.program.ProgramStateManager):
  """TFF's manager of program states in files, with a record of each.

  The record has the digests of the checkpoint's files, and the metrics up to
  it. It is written last, when all else is on the disk. So a checkpoint without
  a record does not count: the process was killed while it was saved.
  """

  def __init__(self, folder: folder_lib.RunFolder):
    """Names the folder of the run; it keeps the last two checkpoints."""
    self._folder = folder

  def _manager(self) -> tff.program.FileProgramStateManager:
    # It makes the folder, which a reader must not.
    return tff.program.FileProgramStateManager(
      self._folder.checkpoints, _PREFIX, keep_total=2, keep_first=False
    )

  async def get_versions(self) -> list[int] | None:
    """See base class."""
    return self._versions() or None

  async def load(self, version: int, structure: Any) -> Any:
    """See base class; raises a `CheckpointError` if it is damaged."""
    path = self._path(version)
    files = self._read_record(version)['files']
    for name, digest in files.items():
      file = os.path.join(path, name)
      if not os.path.isfile(file) or _digest(file) != digest:
        raise CheckpointError(
          f'The checkpoint of round {version} is damaged: {file} is not the'
          ' file that was saved. Put it back from a copy.'
        )
    try:
      _check_operations(path)
      return await self._manager().load(version, structure)
    except Exception as e:  # As many kinds as there are ways to be wrong.
      raise CheckpointError(
        f'The checkpoint of round {version} in {path} is of another task or'
        f' version: {errors.first_line(e)}.'
      ) from e

  async def save(self, program_state: Any, version: int) -> None:
    """See base class."""
    await self._manager().save(program_state, version)
    path = self._path(version)
    names = list(_files(path))
    for name in names:
      folder_lib.sync(os.path.join(path, name))
    for parent, *_ in os.walk(path):
      folder_lib.sync(parent)
    folder_lib.sync(self._folder.checkpoints)
    record = {
      'files': {name: _digest(os.path.join(path, name)) for name in names},
      'metrics': self._read_metrics(),
    }
    folder_lib.write(self._record(version), json.dumps(record, indent=1))

  async def remove_all(self) -> None:
    """See base class."""
    self._remove_after(-1)

  def prepare(self, from_round: int | None = None) -> int:
    """Makes the folder ready to go on from a checkpoint, and gives its round.

    What a killed process left is removed, and the metrics become those of the
    checkpoint, whatever has happened to them. With `from_round` it is the
    checkpoint of that round, and later ones are removed. Without a checkpoint
    the round is 0; an error is raised if there was one, which is lost.
    """
    versions = self._versions()
    if from_round is not None:
      if from_round not in versions:
        raise CheckpointError(
          f'--from_round={from_round} is not among the checkpoints that are'
          f' kept in {self._folder.path}:'
          f' {", ".join(map(str, versions)) or "there is none"}.'
        )
      self._remove_after(from_round)
      versions = [v for v in versions if v <= from_round]
    lost = [v for v in self._found() if v not in versions]
    if not versions:
      self._check_is_new(lost)
    for version in lost:
      shutil.rmtree(self._path(version))
    self._restore_metrics(versions)
    return max(versions, default=0)

  def has_metrics(self) -> bool:
    """Whether the metrics are those of the last checkpoint, or more."""
    versions = self._versions()
    if not versions:
      return True
    metrics = self._read_record(versions[-1])['metrics']
    return self._read_metrics().startswith(metrics)

  def _check_is_new(self, lost: list[int]) -> None:
    """Raises an error if there were checkpoints, which are lost now."""
    if max(lost, default=0) > 0:
      missing = self._record(max(lost))
    elif len(self._folder.read_metrics()) > 1:
      missing = self._folder.checkpoints
    else:
      return
    raise CheckpointError(
      f'{self._folder.path} has no whole checkpoint, but it had one: {missing}'
      ' is lost. Put it back from a copy, or name another --output_dir.'
    )

  def _restore_metrics(self, versions: list[int]) -> None:
    if versions:
      metrics = self._read_record(versions[-1])['metrics']
      if self._read_metrics() != metrics:
        folder_lib.write(self._folder.metrics, metrics)
    else:
      with contextlib.suppress(FileNotFoundError):
        os.remove(self._folder.metrics)

  def _read_metrics(self) -> str:
    try:
      with open(self._folder.metrics, newline='', errors='replace') as file:
        return file.read()
    except FileNotFoundError:
      return ''

  def _read_record(self, version: int) -> dict[str, Any]:
    path = self._record(version)
    try:
      with open(path) as file:
        content = json.load(file)
      if all(
        isinstance(content[name], kind)
        for name, kind in (('files', dict), ('metrics', str))
      ):
        return content
      raise TypeError('files and metrics are not in it')
    except (ValueError, LookupError, TypeError, OSError, RecursionError) as e:
      raise CheckpointError(
        f'The checkpoint of round {version} is damaged: {path} cannot be read'
        f' ({errors.first_line(e)}). Put it back from a copy.'
      ) from e

  def _found(self) -> list[int]:
    """The rounds of all checkpoints, also of those that are not whole."""
    if not os.path.isdir(self._folder.checkpoints):
      return []
    names = os.listdir(self._folder.checkpoints)
    return sorted(int(m[1]) for m in map(_CHECKPOINT.fullmatch, names) if m)

  def _versions(self) -> list[int]:
    return [v for v in self._found() if os.path.isfile(self._record(v))]

  def _remove_after(self, version: int) -> None:
    for found in self._found():
      if found > version:
        # First what makes it count: the rest may be removed by half.
        with contextlib.suppress(FileNotFoundError):
          os.remove(self._record(found))
        shutil.rmtree(self._path(found))

  def _path(self, version: int) -> str:
    return os.path.join(self._folder.checkpoints, f'{_PREFIX}{version}')

  def _record(self, version: int) -> str:
    return os.path.join(self._path(version), _RECORD)


def _files(path: str) -> Iterator[str]:
  """The files in a folder and its folders."""
  for parent, _, names in os.walk(path):
    for name in names:
      yield os.path.relpath(os.path.join(parent, name), path)


def _digest(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_operations(path: str) -> None:
  """Raises a `ValueError` if a SavedModel does more than a checkpoint does."""
  model = saved_model_pb2.SavedModel()
  with open(os.path.join(path, 'saved_model.pb'), 'rb') as file:
    model.ParseFromString(file.read())
  found = set()
  for graph in (meta.graph_def for meta in model.meta_graphs):
    for nodes in (graph.node, *(f.node_def for f in graph.library.function)):
      found |= {node.op for node in nodes}
  if found - _OPERATIONS:
    raise ValueError(
      f'it has operations of another program, {", ".join(found - _OPERATIONS)}'
    )
