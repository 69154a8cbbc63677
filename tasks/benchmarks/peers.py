"""Rounds of other implementations: TFF's own algorithms, and Apple's pfl."""

import collections
from collections.abc import Callable
from collections.abc import Sequence
import os
import subprocess
import tempfile
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tasks.benchmarks import timing
from tasks.runs import errors

_PFL_PROGRAM = os.path.join(os.path.dirname(__file__), 'pfl_process.py')
_LEARNING_RATE = 0.1


def _loss() -> tf.keras.losses.Loss:
  return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build_tff(
  name: str, build_model: Callable[[], tf.keras.Model], input_spec: Any
) -> tff.learning.templates.LearningProcess:
  """One of TFF's own learning processes.

  Args:
    name: `FedAvg (VariableModel)`, `FedAvg (FunctionalModel)` or `MimeLite`.
    build_model: Makes the Keras model.
    input_spec: The spec of a batch.

  Returns:
    The process.
  """

  def variable_model() -> tff.learning.models.VariableModel:
    return tff.learning.models.from_keras_model(
      build_model(),
      loss=_loss(),
      input_spec=input_spec,
      metrics=[tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
    )

  optimizer = tff.learning.optimizers.build_sgdm(_LEARNING_RATE)
  algorithms = tff.learning.algorithms
  if name == 'MimeLite':
    return algorithms.build_unweighted_mime_lite(variable_model, optimizer)
  if name == 'FedAvg (VariableModel)':
    return algorithms.build_unweighted_fed_avg(variable_model, optimizer)
  model = tff.learning.models.functional_model_from_keras(
    build_model(),
    _loss(),
    input_spec,
    lambda: collections.OrderedDict(
      accuracy=tf.keras.metrics.SparseCategoricalAccuracy()
    ),
  )
  return algorithms.build_unweighted_fed_avg(model, optimizer)


def start_pfl(
  python: Sequence[str], method: str, *numbers: int
) -> Callable[[], float]:
  """Starts a process of pfl.

  Args:
    python: The command of a Python that has pfl and PyTorch.
    method: fed_avg or scaffold.
    *numbers: As in `pfl_process`.

  Returns:
    A function that runs a round there and gives its seconds.

  Raises:
    timing.UnavailableError: If it does not run.
  """
  output = tempfile.TemporaryFile('w+')
  try:
    process = subprocess.Popen(
      [*python, _PFL_PROGRAM, method, *map(str, numbers)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=output,
      text=True,
    )
  except OSError as e:
    raise timing.UnavailableError(f'{python[0]}: {e.strerror}') from e

  def run_round() -> float:
    try:
      process.stdin.write('\n')
      process.stdin.flush()
    except BrokenPipeError:
      pass
    line = process.stdout.readline()
    if not line:
      process.wait()
      output.seek(0)
      reason = errors.last_line(output.read())
      raise timing.UnavailableError(f'pfl does not run: {reason}')
    return float(line)

  return run_round
