"""Trains an experiment in its folder, with TFF's own loop."""

import asyncio
import collections
from typing import Any

import grpc
import numpy as np
import tensorflow_federated as tff

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import progress as progress_lib
from tasks.runs import settings as settings_lib
import tff_debias
from tff_debias import runtime


class RoundFailedError(ValueError):
  """The runtime could not finish a round: its message, and what to do."""


def run(
  experiment: experiment_lib.Experiment,
  folder: folder_lib.RunFolder,
  rounds: int,
  rounds_per_checkpoint: int,
) -> None:
  """Trains to the given round, from the folder's last checkpoint.

  Args:
    experiment: The experiment.
    folder: The folder of the run, locked.
    rounds: The round to train to.
    rounds_per_checkpoint: The rounds from one checkpoint to the next.

  Raises:
    ValueError: If the folder holds something else, or a round fails.
  """
  folder.claim(experiment.settings)
  folder.repair_metrics()
  storage = tff_debias.ClientStorage(folder.storage)
  checkpoints = tff_debias.StorageStateManager(
    tff.program.FileProgramStateManager(
      folder.checkpoints, keep_total=2, keep_first=False
    ),
    storage,
  )
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
  with runtime.local_context(log_file=folder.worker_log):
    done = _last_version(checkpoints)
    if done > rounds:
      raise settings_lib.SettingsError(
        f'--rounds={rounds} must be at least {done}, the number of rounds that'
        f' are done in {folder.path}.'
      )
    with _Progress(rounds, done) as progress:
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
            tff.program.TensorBoardReleaseManager(folder.tensorboard),
            progress,
          ],
        )
      except (grpc.RpcError, runtime.WorkerError) as e:
        raise RoundFailedError(
          f'A round failed: {_reason(e)}. Nothing is lost: the same command'
          ' goes on from the last checkpoint.'
        ) from e
    if _last_version(checkpoints) < rounds:
      _wait(checkpoints.save(state, rounds))
    weights = experiment.evaluated_weights(process, state)
  model = experiment.build_keras_model()
  weights.assign_weights_to(model)
  model.save(folder.meta_model)


def _wait(coroutine: Any) -> Any:
  return asyncio.get_event_loop().run_until_complete(coroutine)


def _last_version(manager: tff.program.ProgramStateManager) -> int:
  return max(_wait(manager.get_versions()) or [0])


def _reason(error: grpc.RpcError | runtime.WorkerError) -> str:
  if isinstance(error, runtime.WorkerError):
    return str(error)
  return errors.first_line(error.details()).removeprefix(
    'Failed to run computation: '
  )


class _Progress(tff.program.ReleaseManager):
  """Shows the progress in a bar, from the metrics of every round."""

  def __init__(self, rounds: int, done: int):
    self._bar = progress_lib.progress(rounds, 'round', initial=done)

  def __enter__(self) -> '_Progress':
    return self

  def __exit__(self, *unused_exception: Any) -> None:
    self._bar.close()

  async def release(self, value: Any, key: int) -> None:
    """See base class."""
    self._bar.update(key - self._bar.n)
    accuracy = value.get('evaluation/by_client')
    if accuracy is not None:
      mean = np.asarray(accuracy['accuracy']['mean'])
      self._bar.set_postfix_str(f'accuracy {mean:.3f}')
    if 'client_work' in value and not value['client_work']['participants']:
      self._bar.write(f'Round {key}: no client counted; the model stays.')
