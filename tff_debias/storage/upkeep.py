"""Keeps a folder of client states small, on the disk, and in step with a run.

Only files and folders with the names that `client_storage` gives are touched,
and no symbolic link is followed.
"""

from collections.abc import Iterator
import os
import re

import tensorflow as tf

from tff_debias.storage import lineage as lineage_lib

_ROUND = re.compile(r'^\d{9}$')
_ENTRY = re.compile(r'^(\d{19})-(\d+)-(\d+_\d+)$')
_STATE = re.compile(r'^(\d{9})-(\d{19})\.(index|data-\d+-of-\d+)$')
# What a process leaves that is killed while it writes a state.
_LEFTOVER = re.compile(r'^\d{9}-\d{19}\.(index|data-\d+-of-\d+)\.tempstate\d+$')
_SHARD = re.compile(r'^\d+$')
_NAME = re.compile(r'^\d+_\d+$')

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
  for round_num in _journal(folder, lineage):
    journal = os.path.join(_run(folder, lineage), 'journal', f'{round_num:09d}')
    for client in _entries(folder, lineage, round_num):
      for name in _list(client, _STATE):
        if int(name[:9]) == round_num:
          _fsync(os.path.join(client, name))
      _fsync(os.path.join(client, 'client_id'))
      _fsync(client)
      _fsync(os.path.dirname(client))
    _fsync(journal)
  for path in (('clients',), ('journal',), ()):
    path = os.path.join(_run(folder, lineage), *path)
    if os.path.isdir(path):
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
  for version in _journal(folder, lineage):
    if version <= round_num:
      for client in _entries(folder, lineage, version):
        versions = [v for v in _versions(client) if v[0] <= round_num]
        kept = _newest(lineage, versions, round_num)
        _remove(client, [v for v in versions if v != kept])
      _forget(folder, lineage, version)


def rollback(folder: str, lineage: lineage_lib.Lineage) -> None:
  """Removes the states written after a server state, and checks all others.

  Args:
    folder: The folder of a `ClientStorage`.
    lineage: The lineage of the server state, of NumPy values.

  Raises:
    ClientStorageError: If states that the server state needs are lost.
  """
  done = len(lineage.windows)
  for version in _journal(folder, lineage):
    if version > done:
      for client in _entries(folder, lineage, version):
        _remove(client, [v for v in _versions(client) if v[0] > done])
        for name in _list(client, _LEFTOVER):
          tf.io.gfile.remove(os.path.join(client, name))
      _forget(folder, lineage, version)
  tokens = [
    newest[1]
    for client in _clients(folder, lineage)
    if (newest := _newest(lineage, _versions(client), done))
  ]
  digest = sum(lineage_lib.fingerprint(token) for token in tokens)
  if len(tokens) != lineage.num_clients or digest != lineage.digest:
    raise ClientStorageError(
      f'Client states are lost or foreign in {_run(folder, lineage)}: the'
      f' checkpoint of round {done} needs those of {lineage.num_clients}'
      f' clients, and {len(tokens)} are there'
      + (', not all of them the same.' if digest != lineage.digest else '.')
      + ' Put them back from a copy, or begin a new run.'
    )


def _run(folder: str, lineage: lineage_lib.Lineage) -> str:
  return os.path.join(folder, str(int(lineage.run)))


def _list(folder: str, pattern: re.Pattern[str]) -> list[str]:
  """The names in a folder that are of our making."""
  if os.path.islink(folder):
    raise ClientStorageError(
      f'{folder} is a symbolic link, which no client storage has. Remove it.'
    )
  if not tf.io.gfile.isdir(folder):
    return []
  names = (name.rstrip('/') for name in tf.io.gfile.listdir(folder))
  return sorted(name for name in names if pattern.match(name))


def _clients(folder: str, lineage: lineage_lib.Lineage) -> Iterator[str]:
  clients = os.path.join(_run(folder, lineage), 'clients')
  for shard in _list(clients, _SHARD):
    for name in _list(os.path.join(clients, shard), _NAME):
      yield os.path.join(clients, shard, name)


def _journal(folder: str, lineage: lineage_lib.Lineage) -> list[int]:
  """The rounds in the journal."""
  journal = os.path.join(_run(folder, lineage), 'journal')
  return [int(name) for name in _list(journal, _ROUND)]


def _entries(
  folder: str, lineage: lineage_lib.Lineage, round_num: int
) -> list[str]:
  """The folders of the clients that wrote a state in a round."""
  run = _run(folder, lineage)
  names = _list(os.path.join(run, 'journal', f'{round_num:09d}'), _ENTRY)
  return sorted(
    {
      os.path.join(run, 'clients', *_ENTRY.match(name).groups()[1:])
      for name in names
    }
  )


def _versions(client: str) -> list[Version]:
  matches = map(_STATE.match, _list(client, _STATE))
  return sorted({(int(match[1]), int(match[2])) for match in matches})


def _newest(
  lineage: lineage_lib.Lineage, versions: list[Version], round_num: int
) -> Version | None:
  """The newest version that belongs to the lineage, up to a round."""
  belonging = [
    (version, token)
    for version, token in versions
    if version <= min(round_num, len(lineage.windows))
    and lineage.windows[version - 1][0] <= token
    and token <= lineage.windows[version - 1][1]
  ]
  return max(belonging, default=None)


def _remove(client: str, versions: list[Version]) -> None:
  for name in _list(client, _STATE):
    match = _STATE.match(name)
    if (int(match[1]), int(match[2])) in versions:
      tf.io.gfile.remove(os.path.join(client, name))


def _forget(folder: str, lineage: lineage_lib.Lineage, round_num: int) -> None:
  tf.io.gfile.rmtree(
    os.path.join(_run(folder, lineage), 'journal', f'{round_num:09d}')
  )


def _fsync(path: str) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
