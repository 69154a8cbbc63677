"""Trains an experiment in its folder with TFF's loop, and reads its models."""

import asyncio
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
import shutil
import tempfile
from typing import Any

import numpy as np
import tensorflow_federated as tff
import tqdm

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
import tff_debias
from tff_debias import checks
from tff_debias import runtime

_PREFIX = 'round_'


class _Checkpoints(tff.program.FileProgramStateManager):
  """TFF's state manager, which keeps two; its errors say what helps."""

  def __init__(self, folder: folder_lib.RunFolder):
    self._path = folder.checkpoints
    super().__init__(self._path, _PREFIX, keep_total=2, keep_first=False)

  async def load(self, version: int, structure: Any) -> Any:
    """Raises a `UserError` if the checkpoint cannot be read."""
    try:
      return await super().load(version, structure)
    except Exception as e:  # Each file has its own kinds of error.
      way_back = 'Begin a new run in another --output_dir.'
      for earlier in await self.get_versions() or []:
        if earlier < version:
          way_back = f'Train from the one before it: --from_round={earlier}.'
      raise errors.UserError(
        f'The checkpoint of round {version} in {self._path} is damaged, or of'
        f' another version ({checks.first_line(e)}). {way_back}'
      ) from e

  def versions(self) -> list[int]:
    """The rounds of the checkpoints."""
    return asyncio.run(self.get_versions()) or []

  def check(self, flag: str, round_num: int) -> None:
    """Raises a `UserError` if there is no checkpoint of a round."""
    versions = self.versions()
    if round_num not in versions:
      kept = ', '.join(map(str, versions)) or 'there is none yet'
      raise errors.UserError(
        f'{flag}={round_num} is not among the checkpoints in {self._path}:'
        f' {kept}.'
      )


def run(
  experiment: experiment_lib.Experiment,
  folder: folder_lib.RunFolder,
  rounds: int,
  rounds_per_checkpoint: int = 10,
  from_round: int | None = None,
  workers: Sequence[str] = (),
) -> list[dict[str, float]]:
  """Trains to a round from the folder's last checkpoint; returns the metrics.

  With `from_round` it goes on from the checkpoint of that round, and removes
  later ones. The folder is locked meanwhile. The clients run in this process,
  or on the TFF workers at the addresses `workers`.
  """
  context = (
    runtime.remote_context(workers) if workers else runtime.local_context()
  )
  s = experiment.settings
  with folder.lock(), context:
    folder.claim(s)
    files = _Checkpoints(folder)
    done = max(files.versions(), default=0)
    if from_round is not None:
      files.check('--from_round', from_round)
      done = from_round
    if done > rounds:
      raise errors.UserError(
        f'--rounds={rounds} must be at least {done}, the number of rounds that'
        f' are done in {folder.path}.'
      )
    storage = tff_debias.ClientStorage(folder.storage)
    process = experiment.build_process(storage)
    evaluation = experiment.build_evaluation()

    def evaluate(state: Any, round_num: int) -> Mapping[str, Any]:
      # The last round is always tested, which TFF's loop does not do.
      if round_num % s.rounds_per_evaluation and round_num != rounds:
        return {}
      weights = experiment.evaluated_weights(process, state)
      return evaluation(weights, experiment.evaluation_data)

    checkpoints = tff_debias.StorageStateManager(files, storage)
    for version in files.versions():
      if version > done:  # The run goes back.
        shutil.rmtree(f'{folder.checkpoints}/{_PREFIX}{version}')
    # TFF's loop asks for the event loop of the thread.
    asyncio.set_event_loop(asyncio.new_event_loop())
    with tqdm.tqdm(total=rounds, unit='round', initial=done) as bar:
      state = tff.simulation.run_training_process(
        process,
        experiment.training_data,
        rounds,
        evaluate,
        lambda round_num: round_num,
        program_state_manager=checkpoints,
        rounds_per_saving_program_state=rounds_per_checkpoint,
        metrics_managers=[
          # It replaces the file as a whole, so no kill leaves half a line.
          tff.program.CSVFileReleaseManager(
            folder.metrics, tff.program.CSVSaveMode.WRITE, 'round'
          ),
          _TensorBoard(folder, s),
          _Progress(bar),
        ],
      )
    if rounds not in files.versions():
      asyncio.run(checkpoints.save(state, rounds))
    # Last and as a whole, so that it says that the run has ended.
    model = experiment.build_keras_model()
    experiment.evaluated_weights(process, state).assign_weights_to(model)
    unfinished = os.path.join(folder.path, 'meta_model.new.keras')
    model.save(unfinished)
    os.replace(unfinished, folder.meta_model)
    # A run that was killed, or goes back, may have metrics of later rounds.
    return [row for row in folder.read_metrics() if row['round'] <= rounds]


def load(
  experiment: experiment_lib.Experiment,
  folder: folder_lib.RunFolder,
  round_num: int | None = None,
) -> tuple[tff.learning.models.ModelWeights, int]:
  """The meta-model of a round of a run, which may go on, and the round.

  `evaluated_model` in the settings says which model. The round is by default
  that of the newest checkpoint.
  """
  files = _Checkpoints(folder)
  if round_num is None:
    round_num = max(files.versions(), default=0)
  files.check('--round', round_num)
  with tempfile.TemporaryDirectory() as storage:
    # The process is only for the structure of its state.
    process = experiment.build_process(tff_debias.ClientStorage(storage))
    structure = process.initialize()
  state = asyncio.run(files.load(round_num, structure))
  return experiment.evaluated_weights(process, state), round_num


def train_locally(
  settings: settings_lib.Settings, num_steps: int, path: str
) -> float:
  """The mean accuracy of devices that train alone, without communication.

  Each takes `num_steps` steps of the size `learning_rate` on all of its
  training examples, from the initial model. The accuracy is kept in the file
  `path`, from which the next call with the same settings reads it.
  """
  # A correction has no effect here.
  asked = {**vars(settings.uncorrected()), 'steps': num_steps}
  with contextlib.suppress(FileNotFoundError), open(path) as file:
    stored = json.load(file)
    if stored['settings'] == asked:
      return stored['accuracy']
  experiment = experiment_lib.Experiment(settings)
  with runtime.local_context():
    answers = experiment_lib.run_in_parts(
      experiment.build_local_training(num_steps),
      experiment.model.initial_weights,
      experiment.evaluation_data,
      len(experiment.evaluation_data),
      'trained alone',
    )
  accuracy = float(
    np.mean([a['accuracy'] for a in answers if a['is_included']])
  )
  with open(path, 'w') as file:
    json.dump({'settings': asked, 'accuracy': accuracy}, file, indent=1)
  return accuracy


class _TensorBoard(tff.program.TensorBoardReleaseManager):
  """Writes a run with the method's name; the accuracy comes first."""

  def __init__(self, folder: folder_lib.RunFolder, settings: Any):
    # TensorBoard calls a run as its folder.
    name = folder_lib.name_of(*settings.method_names)
    super().__init__(os.path.join(folder.tensorboard, name))

  async def release(self, value: Any, key: int) -> None:
    """Writes the metrics of a round, the main ones in a group of their own."""
    main = {}
    if 'client_work' in value:
      main['training loss'] = value['client_work']['train']['loss']
    if tests := value.get('evaluation/by_client'):
      main['accuracy'] = tests['accuracy']['mean']
      main['worst tenth'] = tests['accuracy']['q10']
    # TensorBoard sorts the groups by name.
    await super().release({'1 main': main, **value}, key)


class _Progress(tff.program.ReleaseManager):
  """Shows the progress in a bar."""

  def __init__(self, bar: tqdm.tqdm):
    self._bar = bar

  async def release(self, value: Any, key: int) -> None:
    """Moves the bar to a round."""
    self._bar.update(key - self._bar.n)
    if accuracy := value.get('evaluation/by_client'):
      mean = np.asarray(accuracy['accuracy']['mean'])
      self._bar.set_postfix_str(f'accuracy {mean:.3f}', refresh=False)
