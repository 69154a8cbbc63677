"""Reads the meta-model of a run that is finished or that still goes on.

Nothing of the run is written, and its lock is neither needed nor taken.
"""

import asyncio
import os
import tempfile
from typing import Any
import zipfile

import tensorflow as tf
import tensorflow_federated as tff

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import state_manager
import tff_debias


def load(
  experiment: experiment_lib.Experiment,
  folder: folder_lib.RunFolder,
  round_num: int | None = None,
) -> tuple[tff.learning.models.ModelWeights, int]:
  """The meta-model of a round, and the round.

  `evaluated_model` in the settings says which model. The round is by default
  that of the newest checkpoint, or, where only the final model is left, the
  last one.
  """
  if _versions(folder):
    return _load_checkpoint(experiment, folder, round_num)
  if not os.path.exists(folder.meta_model):
    raise errors.UserError(
      f'There is no checkpoint in {folder.path} yet. Wait until the run has'
      ' saved one, or train it: python -m tasks.train.'
    )
  rows = folder.read_metrics()
  if not rows:
    raise errors.UserError(
      f'The round of {folder.meta_model} is not known: there is neither'
      f' {folder.metrics} nor a checkpoint. Put one of them back.'
    )
  last = int(rows[-1]['round'])
  if round_num not in (None, last):
    raise errors.UserError(
      f'--round={round_num} must be {last}: only the final model is left in'
      f' {folder.path}.'
    )
  return load_final(experiment, folder), last


def load_final(
  experiment: experiment_lib.Experiment, folder: folder_lib.RunFolder
) -> tff.learning.models.ModelWeights:
  """The model of a run that has finished, from its `meta_model.keras`."""
  # Only the weights are read. Keras would call functions that a file names, for
  # some files also in its safe mode.
  keras_model = experiment.build_keras_model()
  # A damaged file raises any of a dozen exceptions of as many packages.
  try:
    # Of a file that is no zip, Keras would take the name for that of another.
    if not zipfile.is_zipfile(folder.meta_model):
      raise ValueError('it is no Keras zip file')
    keras_model.load_weights(folder.meta_model)
  except Exception as e:
    raise errors.UserError(
      f'{folder.meta_model} is damaged, or of another network:'
      f' {errors.first_line(e)}. The command of the run, given again, writes it'
      ' anew.'
    ) from e
  return tff.learning.models.ModelWeights(
    tuple(v.numpy() for v in keras_model.trainable_variables),
    tuple(v.numpy() for v in keras_model.non_trainable_variables),
  )


def _load_checkpoint(
  experiment: experiment_lib.Experiment,
  folder: folder_lib.RunFolder,
  round_num: int | None,
) -> tuple[tff.learning.models.ModelWeights, int]:
  with tempfile.TemporaryDirectory() as storage:
    # The process is only for the structure of its state. Its storage is a new,
    # empty one, so that the run's stays as it is.
    process = experiment.build_process(tff_debias.ClientStorage(storage))
    structure = process.initialize()
  while True:
    versions = _versions(folder)
    chosen = versions[-1] if round_num is None else round_num
    if chosen not in versions:
      kept = ', '.join(map(str, versions))
      raise errors.UserError(
        f'--round={chosen} is not among the checkpoints that are kept in'
        f' {folder.path}: {kept}.'
      )
    try:
      manager = state_manager.StateManager(folder)
      state = asyncio.run(manager.load(chosen, structure))
      break
    except state_manager.CheckpointError as e:
      # A run that goes on may have removed the checkpoint while it was read.
      if max(_versions(folder), default=0) > versions[-1]:
        continue
      others = [f'--round={v}' for v in versions if v != chosen]
      raise errors.UserError(
        str(e) + (f' Another one is {others[-1]}.' if others else '')
      ) from e
  _check_shapes(state.global_model_weights, experiment, folder.checkpoints)
  return experiment.evaluated_weights(process, state), chosen


def _versions(folder: folder_lib.RunFolder) -> list[int]:
  return asyncio.run(state_manager.StateManager(folder).get_versions()) or []


def _check_shapes(
  weights: Any, experiment: experiment_lib.Experiment, path: str
) -> None:
  found, wanted = (
    [w.shape for w in tf.nest.flatten(w)]
    for w in (weights, experiment.model.initial_weights)
  )
  if found != wanted:
    raise errors.UserError(
      f'{path} is of another network: its weights are of the shapes {found},'
      f' those of the run of {wanted}.'
    )
