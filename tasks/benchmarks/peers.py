"""Cases of other implementations: TFF's own algorithms, and Apple's pfl."""

# The methods of a case are documented in `timing.Case`.
# ruff: noqa: D102

import collections
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import signal
import subprocess
import tempfile

import tensorflow as tf
import tensorflow_federated as tff

from tasks.benchmarks import cases
from tasks.benchmarks import problem as problem_lib
from tasks.benchmarks import timing
from tasks.runs import errors

_PFL_PROGRAM = os.path.join(os.path.dirname(__file__), 'pfl_process.py')


@dataclasses.dataclass
class TffRounds(cases.Rounds):
  """Rounds of TFF's MimeLite, or of its FedAvg by the kind of its model."""

  problem: problem_lib.Problem
  name: str
  data: Sequence[tf.data.Dataset]

  def prepare(self) -> None:
    algorithms = tff.learning.algorithms
    model, build = self._variable_model, algorithms.build_unweighted_fed_avg
    if self.name == 'MimeLite':
      build = algorithms.build_unweighted_mime_lite
    elif self.name == 'FunctionalModel':
      model = tff.learning.models.functional_model_from_keras(
        self.problem.build_model(),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        self.problem.input_spec,
        lambda: collections.OrderedDict(
          accuracy=tf.keras.metrics.SparseCategoricalAccuracy()
        ),
      )
    self.process = build(model, tff.learning.optimizers.build_sgdm(0.1))

  def _variable_model(self) -> tff.learning.models.VariableModel:
    return tff.learning.models.from_keras_model(
      self.problem.build_model(),
      loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      input_spec=self.problem.input_spec,
      metrics=[tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
    )


class TffRoundsInItsContext(TffRounds):
  """The same in the local context that TFF makes."""

  def prepare(self) -> None:
    # Its worker ends with it.
    self._context = tff.backends.native.create_sync_local_cpp_execution_context(
      max_concurrent_computation_calls=os.cpu_count()
    )
    super().prepare()
    # TFF ends its worker with an interrupt and waits. A worker that a program
    # in the background starts would ignore the interrupt, as that program does.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.run()
    signal.signal(signal.SIGINT, before)

  def run(self) -> None:
    with tff.framework.get_context_stack().install(self._context):
      super().run()


@dataclasses.dataclass
class PflRounds(timing.Case):
  """Rounds of Apple's pfl, in a process of another Python.

  `python` is the command of one that has pfl and PyTorch. The arguments are
  those of `pfl_process`.
  """

  python: Sequence[str]
  arguments: Sequence[object]

  def prepare(self) -> None:
    self._output = tempfile.TemporaryFile('w+')
    try:
      self._process = subprocess.Popen(
        [*self.python, _PFL_PROGRAM, *map(str, self.arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._output,
        text=True,
      )
    except OSError as e:
      raise timing.UnavailableError(f'{self.python[0]}: {e.strerror}') from e

  def run(self) -> float:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write('\n')
      self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      self._output.seek(0)
      reason = errors.last_line(self._output.read())
      raise timing.UnavailableError(f'pfl does not run: {reason}')
    return float(line)
