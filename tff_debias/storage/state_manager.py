"""A program state manager that keeps client states in step with checkpoints."""

import asyncio
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias.storage import client_storage
from tff_debias.storage import lineage as lineage_lib
from tff_debias.storage import upkeep


class StorageStateManager(tff.program.ProgramStateManager):
  """Wraps the manager of a `run_training_process` or `train_model`.

  Saving a checkpoint first waits until the client states are on the disk, then
  removes those that no kept checkpoint can need. Loading the latest checkpoint,
  as a run that goes on does, removes the states written after it, and is an
  error if states that it needs are lost.
  """

  def __init__(
    self,
    manager: tff.program.ProgramStateManager,
    storage: client_storage.ClientStorage,
  ):
    """Wraps `manager`, which does the saving, and `storage`."""
    self._manager = manager
    self._folder = storage.folder
    self._loop = self._saving = None

  async def get_versions(self) -> list[int] | None:
    """See base class."""
    return await self._manager.get_versions()

  async def load(self, version: int, structure: Any) -> Any:
    """See base class. Client states are checked, and left as they are.

    Args:
      version: See base class.
      structure: See base class.

    Returns:
      See base class.

    Raises:
      ClientStorageError: If client states that the checkpoint needs are lost.
    """
    state = await self._manager.load(version, structure)
    lineage = await _lineage(state)
    if lineage is not None:
      upkeep.check(self._folder, lineage)
    return state

  async def load_latest(self, structure: Any) -> tuple[Any, int]:
    """See base class; for a run that goes on from there.

    Args:
      structure: See base class.

    Returns:
      See base class.

    Raises:
      ClientStorageError: If client states that the checkpoint needs are lost.
    """
    state, version = await self._manager.load_latest(structure)
    lineage = None if state is None else await _lineage(state)
    if lineage is not None:
      upkeep.rollback(self._folder, lineage)
    return state, version

  async def save(self, program_state: Any, version: int) -> None:
    """See base class. One save at a time, in the order of the calls."""
    # `train_model` does not wait for a save before it begins the next one, and
    # two at a time of TFF's file manager remove the same old checkpoint.
    loop = asyncio.get_running_loop()
    if loop is not self._loop:
      self._loop, self._saving = loop, asyncio.Lock()
    async with self._saving:
      lineage = await _lineage(program_state)
      if lineage is not None:
        upkeep.sync(self._folder, lineage)
      await self._manager.save(program_state, version)
      if lineage is None:
        return
      # The checkpoint of round 0, which managers like to keep, needs no state.
      versions = await self._manager.get_versions()
      oldest = min((v for v in versions if v > 0), default=0)
      upkeep.prune(self._folder, lineage, oldest)

  async def remove_all(self) -> None:
    """See base class. Client states are left as they are."""
    await self._manager.remove_all()


async def _lineage(program_state: Any) -> lineage_lib.Lineage | None:
  """The lineage in the state of TFF's loops: a process's, or one around it.

  Args:
    program_state: The state.

  Returns:
    The lineage, of NumPy values; `None` if clients keep no states.
  """
  state = getattr(program_state, 'state', program_state)
  lineage = await tff.program.materialize_value(state.client_work['lineage'])
  if not lineage:
    return None
  return lineage_lib.Lineage(*tf.nest.map_structure(np.asarray, lineage))
