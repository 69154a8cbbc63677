"""Keeps a folder of client states small, on the disk, and in step with a run.

Only files and folders with the names that `client_storage` gives are touched,
and no symbolic link is followed.
"""

from collections.abc import Iterator
import os
import re
import shutil

import tensorflow as tf

from tff_debias.storage import lineage as lineage_lib

_ROUND = re.compile(r'\d{9}', re.ASCII)
_ENTRY = re.compile(r'(\d{19})-(\d+)-(\d+_\d+)', re.ASCII)
_INDEX = re.compile(r'(\d{9})-(\d{19})\.index', re.ASCII)
# The last group is what a process leaves that is killed while it writes.
_FILE = re.compile(
  r'(\d{9})-(\d{19})\.(?:index|data-\d+-of-\d+)(\.tempstate\d+)?', re.ASCII
)
_SHARD = re.compile(r'\d+', re.ASCII)
_NAME = re.compile(r'\d+_\d+', re.ASCII)

_REMEDY = (
  'Put it back from a copy, go on from an older checkpoint, or begin a new run.'
)

#: The round and the token of a state.
Version = tuple[int, int]


class ClientStorageError(ValueError):
  """The folder of client states cannot be used, and why."""


def sync(folder: str, lineage: lineage_lib.Lineage) -> None:
  """Waits until the states that the journal names are on the disk.

  Args:
    folder: The folder of a `ClientStorage`.
    lineage: The lineage of a server state, of NumPy values.
  """
  if '://' in folder:
    return
  folders = {
    folder,
    _path(folder, lineage),
    _path(folder, lineage, 'clients'),
    _path(folder, lineage, 'journal'),
  }
  for round_num in _journal(folder, lineage):
    folders.add(_path(folder, lineage, 'journal', f'{round_num:09d}'))
    for client in _entries(folder, lineage, round_num):
      folders |= {client, os.path.dirname(client)}
      for name in ['client_id', *_list(client, _FILE)]:
        if name == 'client_id' or int(name[:9]) == round_num:
          _fsync(os.path.join(client, name))
  for path in folders:
    _fsync(path)


def prune(folder: str, lineage: lineage_lib.Lineage, round_num: int) -> None:
  """Removes the states that no checkpoint from a round on can need.

  Of the clients in the journal, the newest state up to that round stays, and
  all later ones.

  Args:
    folder: The folder of a `ClientStorage`.
    lineage: The lineage of a server state, of NumPy values.
    round_num: The last round that the oldest kept checkpoint contains.
  """
  # Of later states the lineage does not know which ones are needed.
  round_num = min(round_num, len(lineage.windows))
  for version in _journal(folder, lineage):
    if version <= round_num:
      for client in _entries(folder, lineage, version):
        kept = _newest(lineage, client, round_num)
        for name, file in _files(client):
          if file[0] <= round_num and file != kept:
            tf.io.gfile.remove(os.path.join(client, name))
      _forget(folder, lineage, version)


def rollback(folder: str, lineage: lineage_lib.Lineage) -> None:
  """Removes the states written after a server state, and checks all others.

  Args:
    folder: The folder of a `ClientStorage`.
    lineage: The lineage of the server state, of NumPy values.

  Raises:
    ClientStorageError: As `check`; nothing is removed then.
  """
  check(folder, lineage)
  done = len(lineage.windows)
  for version in _journal(folder, lineage):
    if version > done:
      for client in _entries(folder, lineage, version):
        for name, file in _files(client):
          if file[0] > done:
            tf.io.gfile.remove(os.path.join(client, name))
      _forget(folder, lineage, version)


def check(folder: str, lineage: lineage_lib.Lineage) -> None:
  """Checks that all the states are there that a server state needs.

  Args:
    folder: The folder of a `ClientStorage`.
    lineage: The lineage of the server state, of NumPy values.

  Raises:
    ClientStorageError: If one is lost, damaged or foreign, or if there is a
      symbolic link in the folder.
  """
  done = len(lineage.windows)
  _journal(folder, lineage)
  tokens = []
  for client in _clients(folder, lineage):
    newest = _newest(lineage, client, done)
    if newest:
      tokens.append(newest[1])
      _check_file(client, newest)
  digest = sum(lineage_lib.fingerprint(token) for token in tokens)
  if len(tokens) != lineage.num_clients or digest != lineage.digest:
    raise ClientStorageError(
      f'States are lost from {_path(folder, lineage)}, or foreign to it: the'
      f' checkpoint of round {done} needs those of {lineage.num_clients}'
      f' clients, and {len(tokens)} are there'
      + (', not all of them the same.' if digest != lineage.digest else '.')
      + f' {_REMEDY}'
    )


def _check_file(client: str, version: Version) -> None:
  """Checks that a file holds the state that its name says."""
  round_num, token = version
  prefix = os.path.join(client, f'{round_num:09d}-{token:019d}')
  try:
    reader = tf.train.load_checkpoint(prefix)
    # All that is read is compared with its checksum.
    tensors = {
      name: reader.get_tensor(name)
      for name in reader.get_variable_to_shape_map()
    }
    found = int(tensors['token'])
  except Exception as e:  # By the damage, also an IndexError or RuntimeError.
    raise ClientStorageError(
      f'The client state {prefix} is lost or damaged: {e}. {_REMEDY}'
    ) from e
  if found != token:
    raise ClientStorageError(
      f'The client state {prefix} holds another one, {found:019d}. {_REMEDY}'
    )


def _path(folder: str, lineage: lineage_lib.Lineage, *parts: str) -> str:
  """The path of something of a run, none of whose parts is a symbolic link."""
  path = folder
  for part in (str(int(lineage.run)), *parts):
    path = os.path.join(path, part)
    if os.path.islink(path):
      raise ClientStorageError(
        f'{path} is a symbolic link, which no client storage has. Remove it.'
      )
  return path


def _list(folder: str, pattern: re.Pattern[str]) -> list[str]:
  """The names in a folder that are of our making."""
  if not tf.io.gfile.isdir(folder):
    return []
  names = (name.rstrip('/') for name in tf.io.gfile.listdir(folder))
  return sorted(name for name in names if pattern.fullmatch(name))


def _clients(folder: str, lineage: lineage_lib.Lineage) -> Iterator[str]:
  clients = _path(folder, lineage, 'clients')
  for shard in _list(clients, _SHARD):
    for name in _list(_path(folder, lineage, 'clients', shard), _NAME):
      yield _client(folder, lineage, shard, name)


def _client(
  folder: str, lineage: lineage_lib.Lineage, shard: str, name: str
) -> str:
  """The folder of a client; a round writes its file with the id again."""
  path = _path(folder, lineage, 'clients', shard, name, 'client_id')
  return os.path.dirname(path)


def _journal(folder: str, lineage: lineage_lib.Lineage) -> list[int]:
  """The rounds in the journal."""
  names = _list(_path(folder, lineage, 'journal'), _ROUND)
  for name in names:
    _path(folder, lineage, 'journal', name)
  return [int(name) for name in names]


def _entries(
  folder: str, lineage: lineage_lib.Lineage, round_num: int
) -> list[str]:
  """The folders of the clients that wrote a state in a round."""
  journal = _path(folder, lineage, 'journal', f'{round_num:09d}')
  matches = map(_ENTRY.fullmatch, _list(journal, _ENTRY))
  return sorted(
    {_client(folder, lineage, match[2], match[3]) for match in matches}
  )


def _files(client: str) -> list[tuple[str, Version]]:
  """The files of a client's states, with leftovers, and their versions."""
  matches = map(_FILE.fullmatch, _list(client, _FILE))
  return [(match[0], (int(match[1]), int(match[2]))) for match in matches]


def _newest(
  lineage: lineage_lib.Lineage, client: str, round_num: int
) -> Version | None:
  """A client's newest state of the lineage, up to a round."""
  matches = map(_INDEX.fullmatch, _list(client, _INDEX))
  versions = [(int(match[1]), int(match[2])) for match in matches]
  belonging = [
    (version, token)
    for version, token in versions
    if 1 <= version <= round_num
    and lineage.windows[version - 1][0] <= token
    and token <= lineage.windows[version - 1][1]
  ]
  return max(belonging, default=None)


def _forget(folder: str, lineage: lineage_lib.Lineage, round_num: int) -> None:
  path = _path(folder, lineage, 'journal', f'{round_num:09d}')
  # TensorFlow's follows symbolic links.
  remove = tf.io.gfile.rmtree if '://' in folder else shutil.rmtree
  remove(path)


def _fsync(path: str) -> None:
  """Waits until a file or a folder is on the disk, if there is one."""
  # A round that failed leaves parts of what it names in the journal.
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except FileNotFoundError:
    return
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
