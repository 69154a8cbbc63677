"""Trains an experiment in its folder, with TFF's own loop."""

import asyncio
import collections
import contextlib
import os
import re
import shutil
from typing import Any

import numpy as np
import tensorflow_federated as tff
import tqdm

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import progress as progress_lib
from tasks.runs import state_manager
import tff_debias
from tff_debias import runtime
from tff_debias import storage as storage_lib


def run(
  experiment: experiment_lib.Experiment,
  folder: folder_lib.RunFolder,
  rounds: int,
  rounds_per_checkpoint: int = 10,
  from_round: int | None = None,
  worker_network: str = 'private',
) -> list[dict[str, Any]]:
  """Trains to the given round from the folder's checkpoint.

  With `from_round` it goes on from the checkpoint of that round, and what came
  later is removed; by default from the last one. `worker_network` is as in
  `runtime.local_context`. The folder is locked meanwhile. Gives the metrics.
  """
  with folder.lock():
    _train(
      experiment,
      folder,
      rounds,
      rounds_per_checkpoint,
      from_round,
      worker_network,
    )
    return folder.read_metrics()


def _train(
  experiment: experiment_lib.Experiment,
  folder: folder_lib.RunFolder,
  rounds: int,
  rounds_per_checkpoint: int,
  from_round: int | None,
  worker_network: str,
) -> None:
  folder.claim(experiment.settings)
  files = state_manager.StateManager(folder)
  storage = tff_debias.ClientStorage(folder.storage)
  checkpoints = tff_debias.StorageStateManager(files, storage)
  process = experiment.build_process(storage)
  evaluation = experiment.build_evaluation()

  def evaluation_data(round_num: int) -> Any:
    is_due = round_num % experiment.settings.rounds_per_evaluation == 0
    return experiment.evaluation_data if is_due or round_num == rounds else None

  def evaluate(state: Any, data: Any) -> Any:
    if data is None:
      return collections.OrderedDict()
    return evaluation(experiment.evaluated_weights(process, state), data)

  asyncio.set_event_loop(asyncio.new_event_loop())
  done = files.prepare(from_round)
  if done > rounds:
    raise errors.UserError(
      f'--rounds={rounds} must be at least {done}, the number of rounds that'
      f' are done in {folder.path}.'
    )
  tensorboard = _restored_tensorboard(folder)
  with runtime.local_context(None, folder.worker_log, worker_network):
    with progress_lib.progress(rounds, 'round', initial=done) as bar:
      try:
        state = tff.simulation.run_training_process(
          process,
          experiment.training_data,
          rounds,
          evaluate,
          evaluation_data,
          program_state_manager=checkpoints,
          rounds_per_saving_program_state=rounds_per_checkpoint,
          metrics_managers=[
            tff.program.CSVFileReleaseManager(
              folder.metrics, key_fieldname='round'
            ),
            tensorboard,
            _Progress(bar),
          ],
        )
      except (runtime.ComputationError, runtime.WorkerError) as e:
        remedy = (
          'Nothing is lost: the same command goes on from the last checkpoint.'
        )
        if state := _damaged_state(e, folder):
          remedy = (
            f'The client state {state[0]} is damaged. Put its files back from a'
            f' copy. {_way_back(checkpoints, process, before=int(state[1]))}'
          )
        raise errors.UserError(
          f'A round failed: {errors.first_line(e)}. {remedy}'
        ) from e
      except (
        state_manager.CheckpointError,
        storage_lib.ClientStorageError,
      ) as e:
        last = max(_wait(checkpoints.get_versions()) or [0])
        way_back = _way_back(checkpoints, process, before=last)
        raise errors.UserError(f'{e} {way_back}') from e
    if max(_wait(checkpoints.get_versions()) or [0]) < rounds:
      _wait(checkpoints.save(state, rounds))
    weights = experiment.evaluated_weights(process, state)
  # Last, so that a new meta-model says that the run has ended.
  model = experiment.build_keras_model()
  weights.assign_weights_to(model)
  unfinished = os.path.join(folder.path, 'meta_model.new.keras')
  model.save(unfinished)
  os.replace(unfinished, folder.meta_model)


def _restored_tensorboard(
  folder: folder_lib.RunFolder,
) -> tff.program.TensorBoardReleaseManager:
  """The manager of TensorBoard's files, with just the rounds in the metrics.

  A killed process has written rounds that are run again, and has not written
  the last ones before.
  """
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(folder.tensorboard)
  manager = tff.program.TensorBoardReleaseManager(folder.tensorboard)
  for row in folder.read_metrics():
    _wait(manager.release(row, int(row.pop('round'))))
  return manager


def _damaged_state(
  error: Exception, folder: folder_lib.RunFolder
) -> re.Match | None:
  """The path of the client state that an error names, and its round."""
  storage = re.escape(os.path.abspath(folder.storage))
  return re.search(storage + r'/\d+/states/[^/]+/(\d{9})-\d{19}', str(error))


def _way_back(
  checkpoints: tff.program.ProgramStateManager,
  process: tff.learning.templates.LearningProcess,
  before: int,
) -> str:
  """Names the newest checkpoint before a round with which a run can go on."""
  structure = process.initialize()
  for version in reversed(_wait(checkpoints.get_versions()) or []):
    with contextlib.suppress(ValueError):
      if version < before:
        _wait(checkpoints.load(version, structure))
        return f'Or go on from round {version}: --from_round={version}.'
  return 'Or begin a new run in another --output_dir.'


def _wait(coroutine: Any) -> Any:
  return asyncio.get_event_loop().run_until_complete(coroutine)


class _Progress(tff.program.ReleaseManager):
  """Shows the progress in a bar, from the metrics of every round."""

  def __init__(self, bar: tqdm.tqdm):
    self._bar = bar

  async def release(self, value: Any, key: int) -> None:
    """See base class."""
    self._bar.update(key - self._bar.n)
    accuracy = value.get('evaluation/by_client')
    if accuracy is not None:
      mean = np.asarray(accuracy['accuracy']['mean'])
      self._bar.set_postfix_str(f'accuracy {mean:.3f}')
    if 'client_work' in value and not value['client_work']['participants']:
      self._bar.write(f'Round {key}: no client counted; the model stays.')
