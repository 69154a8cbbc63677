"""The cases of the benchmark: each prepares its work and runs it for timing."""

# The methods of a case are documented in `timing.Case`.
# ruff: noqa: D102

import asyncio
import collections
from collections.abc import Sequence
import dataclasses
import glob
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tasks.benchmarks import bare
from tasks.benchmarks import problem as problem_lib
from tasks.benchmarks import timing
from tasks.runs import errors
from tasks.runs import pipeline
import tff_debias
from tff_debias import runtime

_MAX_STATES = 50_000


class Rounds(timing.Case):
  """Rounds of a learning process, one after the other, with the same data."""

  process: tff.learning.templates.LearningProcess
  data: Sequence[Any]
  state: Any = None
  num_done = 0

  def run(self) -> None:
    if self.state is None:
      self.state = self.process.initialize()
    self.state = self.process.next(self.state, self.data).state
    self.num_done += 1


@dataclasses.dataclass
class OurRounds(Rounds):
  """Rounds of this project."""

  problem: problem_lib.Problem
  personalization: tff_debias.Personalization
  correction: tff_debias.Correction
  batches: Sequence[tf.data.Dataset]
  num_clients: int | None = None

  def prepare(self) -> None:
    self.storage = tff_debias.ClientStorage(tempfile.mkdtemp())
    self.process = tff_debias.build_learning_process(
      self.problem.model,
      self.personalization,
      self.correction,
      learning_rate=0.1,
      weight_decay=1e-3,
      max_grad_norm=10.0,
      num_clients=self.num_clients or len(self.batches),
      storage=self.storage,
    )
    self.choose(range(len(self.batches)))

  def choose(self, clients: Sequence[int]) -> None:
    """Gives the batches to these devices."""
    self.data = self.batches
    client_data = self.process.next.type_signature.parameter.client_data
    if isinstance(client_data.member, tff.StructType):
      self.data = [
        collections.OrderedDict(client_id=f'client {i}', data=data)
        for i, data in zip(clients, self.batches, strict=True)
      ]


@dataclasses.dataclass
class BareRounds(timing.Case):
  """Rounds of FedAvg as a bare TensorFlow loop."""

  problem: problem_lib.Problem
  personalization: tff_debias.Personalization
  batches: Sequence[tf.data.Dataset]

  def prepare(self) -> None:
    self._train = bare.build_training(
      self.problem.forward, self.personalization
    )
    initial = self.problem.model.initial_weights.trainable
    self._weights = [tf.constant(w) for w in initial]

  def run(self) -> None:
    results = [self._train(self._weights, data) for data in self.batches]
    for tensors in zip(*results, strict=True):
      tf.add_n(tensors).numpy()


@dataclasses.dataclass
class OurEvaluation(timing.Case):
  """The personalized test of this project."""

  personalization: tff_debias.Personalization
  devices: Sequence[tuple[tf.data.Dataset, tf.data.Dataset]]

  def prepare(self) -> None:
    self._model = problem_lib.PAPER.model
    self._compute = tff_debias.build_personalized_evaluation(
      self._model, self.personalization
    )
    self._data = [
      collections.OrderedDict(
        train=pipeline.test_dataset(train, len(train)),
        test=pipeline.test_dataset(test, len(test)),
      )
      for train, test in self.devices
    ]

  def run(self) -> None:
    self._compute(self._model.initial_weights, self._data)


@dataclasses.dataclass
class BareEvaluation(timing.Case):
  """The personalized test as a bare TensorFlow loop."""

  personalization: tff_debias.Personalization
  devices: Sequence[tuple[tf.data.Dataset, tf.data.Dataset]]

  def prepare(self) -> None:
    paper = problem_lib.PAPER
    self._test = bare.build_test(paper.forward, self.personalization)
    initial = paper.model.initial_weights.trainable
    self._weights = [tf.constant(w) for w in initial]
    # In memory, as a bare loop has them: to iterate a data set takes longer.
    self._data = [
      tuple(next(d.batch(len(d)).as_numpy_iterator()) for d in pair)
      for pair in self.devices
    ]

  def run(self) -> None:
    results = [self._test(self._weights, *pair) for pair in self._data]
    tf.reduce_mean(results).numpy()


class PopulationRounds(OurRounds):
  """Rounds with a few devices of a large population, others in each round."""

  def prepare(self) -> None:
    super().prepare()
    self._rng = random.Random(0)
    with runtime.local_context():
      self.run()
    self._copy_states(min(self.num_clients, _MAX_STATES))

  def run(self) -> None:
    self.choose(self._rng.sample(range(self.num_clients), len(self.batches)))
    super().run()

  def _copy_states(self, number: int) -> None:
    """Fills the storage with states of devices that never take part again."""
    states = os.path.join(self.storage.folder, '*', 'states', '*', '*')
    (state, *_) = glob.glob(states)
    folder, name = os.path.split(state)
    for i in range(number):
      copy = os.path.join(os.path.dirname(folder), f'copy{i}')
      os.makedirs(copy)
      os.link(state, os.path.join(copy, name))

  def figures(self) -> dict[str, str]:
    states = os.path.join(self.storage.folder, '*', 'states', '*', '*')
    files = glob.glob(states)
    return {
      'states on the disk': f'{len(files):,}',
      'KB a state': f'{os.path.getsize(files[0]) / 1000:.1f}',
    }


@dataclasses.dataclass
class RoundsWithMemory(timing.Case):
  """Rounds in a worker of their own, with the peaks of memory."""

  rounds: OurRounds
  number: int = 1
  max_concurrency: int | None = None

  def prepare(self) -> None:
    self._peaks = []
    self.rounds.prepare()
    self._checkpoints = tff_debias.StorageStateManager(
      tff.program.FileProgramStateManager(
        tempfile.mkdtemp(), keep_total=1, keep_first=False
      ),
      self.rounds.storage,
    )

  def run(self) -> float:
    with runtime.local_context(self.max_concurrency) as context:
      self.rounds.run()
      pids = (context.worker_pid, os.getpid())
      for pid in pids:
        pathlib.Path(f'/proc/{pid}/clear_refs').write_text('5')
      start = time.perf_counter()
      for _ in range(self.number):
        self.rounds.run()
      seconds = time.perf_counter() - start
      self._peaks.append([_peak_megabytes(pid) for pid in pids])
    # As in training, a checkpoint lets all states go but the newest.
    asyncio.run(self._checkpoints.save(self.rounds.state, self.rounds.num_done))
    return seconds / self.number

  def figures(self) -> dict[str, str]:
    worker, program = np.median(self._peaks, axis=0)
    return {
      'worker MB': f'{worker:.0f}',
      'program MB': f'{program:.0f}',
      **self.rounds.figures(),
    }


def _peak_megabytes(pid: int) -> float:
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  (line,) = (line for line in status.split('\n') if line.startswith('VmHWM'))
  return int(line.split()[1]) / 1024


@dataclasses.dataclass
class Train(timing.Case):
  """A command of `tasks.train`, from its start to its end."""

  flag: str

  def run(self) -> None:
    with tempfile.TemporaryDirectory() as folder:
      result = subprocess.run(
        [
          *(sys.executable, '-m', 'tasks.train', self.flag),
          f'--output_dir={folder}/run',
        ],
        capture_output=True,
        text=True,
      )
    # absl's --help ends with 1.
    if result.returncode and self.flag != '--help':
      raise timing.UnavailableError(errors.last_line(result.stderr))
