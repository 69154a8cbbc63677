"""Keeps the client states that the checkpoints of a run need, and no others."""

import asyncio
import contextlib
import glob
import os
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias.storage import client_storage

#: The number of a round, and a token of it.
Token = tuple[int, int]
_BEFORE_ROUND_1: Token = (0, 0)


class StorageStateManager(tff.program.ProgramStateManager):
  """Wraps the manager of a `run_training_process` or `train_model`.

  Saving removes the client states that no kept checkpoint needs, also if a
  server state that was never saved needs them. Loading removes nothing. It is a
  `ClientStorageError` if client states of the checkpoint are lost.
  """

  def __init__(
    self,
    manager: tff.program.ProgramStateManager,
    storage: client_storage.ClientStorage,
  ):
    """Wraps `manager`, which does the saving, and `storage`."""
    self._manager = manager
    self._folder = storage.folder
    self._loop: asyncio.AbstractEventLoop | None = None
    self._saving = asyncio.Lock()

  async def get_versions(self) -> list[int] | None:
    """See base class."""
    return await self._manager.get_versions()

  async def load(self, version: int, structure: Any) -> Any:
    """See base class. `ClientStorageError` if client states are lost."""
    state = await self._manager.load(version, structure)
    if lineage := await _lineage(state):
      check(self._folder, lineage)
    return state

  async def save(self, program_state: Any, version: int) -> None:
    """See base class. One save at a time, in the order of the calls."""
    # `train_model` does not wait for a save before it begins the next one, and
    # two at a time of TFF's file manager remove the same old checkpoint.
    loop = asyncio.get_running_loop()
    if loop is not self._loop:
      self._loop, self._saving = loop, asyncio.Lock()
    async with self._saving:
      lineage = await _lineage(program_state)
      if lineage is None:
        await self._manager.save(program_state, version)
        return
      # The note first: also after a crash, no checkpoint is without a note.
      note(self._folder, lineage, version, await self._versions())
      await asyncio.to_thread(os.sync)
      await self._manager.save(program_state, version)
      await asyncio.to_thread(os.sync)
      prune(self._folder, lineage, await self._versions())

  async def remove_all(self) -> None:
    """See base class. Client states are left as they are."""
    await self._manager.remove_all()

  async def _versions(self) -> list[int]:
    return await self._manager.get_versions() or []


def check(folder: str, lineage: client_storage.Lineage) -> None:
  """Checks that every client of a lineage has a state.

  Args:
    folder: The folder of a `ClientStorage`.
    lineage: The lineage of a server state, of NumPy values.

  Raises:
    ClientStorageError: If one has none.
  """
  states = os.path.join(folder, str(lineage.run), 'states')
  own = set(_tokens(lineage))
  paths = glob.glob(os.path.join(states, '*', '*-*'))
  found = len({os.path.dirname(path) for path in paths if _token(path) in own})
  if found != lineage.num_clients:
    raise client_storage.ClientStorageError(
      f'Client states are lost from {states}: the checkpoint of round'
      f' {max(own)[0]} needs those of {lineage.num_clients} clients, but'
      f' {found} are there. Put them back from a copy, go on from an older'
      ' checkpoint, or begin a new run.'
    )


def note(
  folder: str,
  lineage: client_storage.Lineage,
  version: int,
  versions: list[int],
) -> None:
  """Notes the last round of a checkpoint that will be saved.

  Args:
    folder: The folder of a `ClientStorage`.
    lineage: The lineage of the checkpoint, of NumPy values.
    version: The number of the checkpoint.
    versions: The numbers of all checkpoints now; other notes are removed.
  """
  path = os.path.join(folder, str(lineage.run), 'checkpoints')
  os.makedirs(path, exist_ok=True)
  for old_path, old_version, _ in _notes(path):
    if old_version not in versions:
      os.remove(old_path)
  round_num, token = max([_BEFORE_ROUND_1, *_tokens(lineage)])
  with open(os.path.join(path, f'{version}-{round_num}-{token}'), 'w'):
    pass


def prune(
  folder: str, lineage: client_storage.Lineage, versions: list[int]
) -> None:
  """Removes the states that no checkpoint needs.

  Of each client, the newest state for every checkpoint stays, and all states of
  later rounds, which may be running. Nothing is removed while one of the
  checkpoints has no note, or is of another branch of the run.

  Args:
    folder: The folder of a `ClientStorage`.
    lineage: The lineage of the checkpoint that was saved last, NumPy values.
    versions: The numbers of all checkpoints, with that one.
  """
  run = os.path.join(folder, str(lineage.run))
  own = {_BEFORE_ROUND_1, *_tokens(lineage)}
  last_round, _ = max(own)
  notes = [
    (version, token)
    for _, version, token in _notes(os.path.join(run, 'checkpoints'))
    if version in versions
  ]
  are_noted = {version for version, _ in notes} == set(versions)
  if not versions or not are_noted or not {token for _, token in notes} <= own:
    return
  kept_rounds = {last_round, *(round_num for _, (round_num, _) in notes)}
  for entry in glob.glob(os.path.join(run, 'rounds', '*', '*', '*=')):
    *_, round_name, token_name, noise_and_client = entry.split(os.sep)
    if int(round_name) > last_round:
      continue
    _, client_name = noise_and_client.split('-', maxsplit=1)
    client = os.path.join(run, 'states', client_name)
    states = {
      token: path
      for path in glob.glob(os.path.join(client, '*-*'))
      if (token := _token(path))[0] <= last_round
    }
    belonging = own & states.keys()
    until = [[t for t in belonging if t[0] <= r] for r in kept_rounds]
    needed = {max(tokens) for tokens in until if tokens}
    for token in states.keys() - needed:
      os.remove(states[token])
    # An entry tells to remove the states before its own, once its own is needed
    # for the oldest checkpoint. Then it has done its work.
    token = (int(round_name), int(token_name))
    if token not in needed or token == min(needed):
      os.remove(entry)
      with contextlib.suppress(OSError):  # It is not empty.
        os.rmdir(os.path.dirname(entry))
        os.rmdir(os.path.dirname(os.path.dirname(entry)))


def _tokens(lineage: client_storage.Lineage) -> list[Token]:
  return [(int(round_num), int(token)) for round_num, token in lineage.tokens]


def _token(state_path: str) -> Token:
  round_num, token = os.path.basename(state_path).split('-')
  return int(round_num), int(token)


def _notes(folder: str) -> list[tuple[str, int, Token]]:
  """The path, the version, and the last round of each note."""
  notes = []
  for path in glob.glob(os.path.join(folder, '*-*-*')):
    version, round_num, token = map(int, os.path.basename(path).split('-'))
    notes.append((path, version, (round_num, token)))
  return notes


async def _lineage(program_state: Any) -> client_storage.Lineage | None:
  """The lineage in the state of one of TFF's loops, if clients keep states."""
  # The state of a process, or one around it.
  state = getattr(program_state, 'state', program_state)
  lineage = await tff.program.materialize_value(state.client_work['lineage'])
  if not lineage:
    return None
  return client_storage.Lineage(*tf.nest.map_structure(np.asarray, lineage))
