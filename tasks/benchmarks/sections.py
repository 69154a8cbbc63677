"""What is measured: a function for each section of the benchmark."""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import glob
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tasks.benchmarks import bare
from tasks.benchmarks import peers
from tasks.benchmarks import timing
from tasks.catalog import networks
from tasks.runs import pipeline
import tff_debias
from tff_debias import runtime

_CORRECTIONS = {
  'none': tff_debias.NoCorrection(),
  'Dyn': tff_debias.Dyn(0.1),
  'Scaf': tff_debias.Scaf(),
}
_NAMES = {'none': 'FedAvg', 'Dyn': 'PFLDyn', 'Scaf': 'PFLScaf'}
_PLAIN_NAMES = {'none': 'FedAvg', 'Dyn': 'FedDyn', 'Scaf': 'SCAFFOLD'}
_MAML_RATE = 0.01
_EXAMPLES = 500
_MAX_STATES = 50_000
_BARE = 'bare TensorFlow loop'
_TFF_IN_ITS_CONTEXT = "TFF FedAvg (VariableModel) in TFF's context"


@dataclasses.dataclass(frozen=True)
class Size:
  """How much work the cases of the paper's network are.

  Attributes:
    devices: The participants.
    local_steps: The local steps K.
    maml_local_steps: K for MAML, whose step takes so much longer.
    maml_steps: s.
    batch_size: The batch size.
    repetitions: How often a case is measured.
    pfl_python: The command of a Python with pfl and PyTorch.
  """

  devices: int
  local_steps: int
  maml_local_steps: int
  maml_steps: int
  batch_size: int
  repetitions: int
  pfl_python: Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
  """A network and random data for it: only time is measured.

  Attributes:
    input_shape: Of an example.
    input_dtype: Likewise.
    build_model: Makes the Keras model.
    forward: The same for the bare loop.
  """

  input_shape: Sequence[int]
  input_dtype: type[np.generic]
  build_model: Callable[[], tf.keras.Model]
  forward: bare.Forward

  @functools.cached_property
  def input_spec(self) -> Any:
    return collections.OrderedDict(
      x=tf.TensorSpec([None, *self.input_shape], self.input_dtype),
      y=tf.TensorSpec([None], tf.int32),
    )

  @functools.cached_property
  def model(self) -> tff_debias.Model:
    return tff_debias.from_keras(
      self.build_model(),
      tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      self.input_spec,
      lambda: [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
    )

  def examples(self, seed: int, number: int) -> tf.data.Dataset:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (number, *self.input_shape), np.uint8)
    x = x.astype(self.input_dtype)
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(x=x, y=rng.integers(0, 10, number, np.int32))
    )

  def batches(
    self, seed: int, batch_size: int, num_batches: int, examples: int
  ) -> tf.data.Dataset:
    return pipeline.training_dataset(
      self.examples(seed, examples), batch_size, num_batches, seed
    )

  def test_data(self, seed: int, number: int) -> tf.data.Dataset:
    return pipeline.test_dataset(self.examples(seed, number), number)

  def build_process(
    self,
    personalization: tff_debias.Personalization,
    correction: tff_debias.Correction,
    num_clients: int,
    storage: tff_debias.ClientStorage,
  ) -> tff.learning.templates.LearningProcess:
    return tff_debias.build_learning_process(
      self.model,
      personalization,
      correction,
      learning_rate=0.1,
      weight_decay=1e-3,
      num_clients=num_clients,
      storage=storage,
    )


_PAPER = _Problem(
  (32, 32, 3),
  np.uint8,
  lambda: networks.cnn(
    (32, 32, 3), 10, tf.keras.layers.Rescaling(1 / 255, name='scaling')
  ),
  bare.cnn,
)
_TINY = _Problem(
  (8, 8),
  np.float32,
  lambda: networks.mlp((8, 8), (32, 16), 10),
  bare.mlp,
)


def _rounds(
  process: tff.learning.templates.LearningProcess, data: Sequence[Any]
) -> Callable[[], None]:
  """Rounds of a process, one after the other, with the same data."""
  state = None

  def run_round() -> None:
    nonlocal state
    state = process.initialize() if state is None else state
    state = process.next(state, data).state

  return run_round


def _new_storage() -> tff_debias.ClientStorage:
  return tff_debias.ClientStorage(tempfile.mkdtemp())


def _ours(
  problem: _Problem,
  personalization: tff_debias.Personalization,
  correction: tff_debias.Correction,
  batches: Sequence[tf.data.Dataset],
  storage: tff_debias.ClientStorage | None = None,
) -> timing.Prepare:
  return lambda: _rounds(
    problem.build_process(
      personalization, correction, len(batches), storage or _new_storage()
    ),
    [
      collections.OrderedDict(client_id=f'device {i}', data=data)
      for i, data in enumerate(batches)
    ],
  )


def _tff(
  problem: _Problem, name: str, batches: Sequence[tf.data.Dataset]
) -> timing.Prepare:
  return lambda: _rounds(
    peers.build_tff(name, problem.build_model, problem.input_spec), batches
  )


def _tff_in_its_context(
  problem: _Problem, batches: Sequence[tf.data.Dataset]
) -> timing.Prepare:
  def prepare() -> Callable[[], None]:
    # Its worker ends with it.
    context = tff.backends.native.create_sync_local_cpp_execution_context(
      max_concurrent_computation_calls=os.cpu_count()
    )
    run_round = _tff(problem, 'FedAvg (VariableModel)', batches)()

    def run() -> None:
      with tff.framework.get_context_stack().install(context):
        run_round()

    # TFF ends it with an interrupt and waits, and a worker that is started by a
    # program in the background would ignore it, as that does.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
    signal.signal(signal.SIGINT, before)
    return run

  return prepare


def _bare_training(
  problem: _Problem,
  personalization: str,
  maml_steps: int,
  batches: Sequence[tf.data.Dataset],
) -> timing.Prepare:
  def prepare() -> Callable[[], None]:
    train = bare.build_training(
      problem.forward, personalization, maml_steps, _MAML_RATE
    )
    weights = [tf.constant(w) for w in problem.model.initial_weights.trainable]

    def run_round() -> None:
      results = [train(weights, data) for data in batches]
      _ = [tf.add_n(tensors).numpy() for tensors in zip(*results, strict=True)]

    return run_round

  return prepare


def _personalizations(maml_steps: int) -> dict[str, Any]:
  return {
    'none': tff_debias.NoPersonalization(),
    'proto': tff_debias.Proto(),
    'maml': tff_debias.Maml(maml_steps, _MAML_RATE),
  }


def _methods(
  problem: _Problem,
  personalization: str,
  maml_steps: int,
  batches: Sequence[tf.data.Dataset],
) -> dict[str, timing.Prepare]:
  """Our three methods of a personalization, and their bare loop."""
  plain = personalization == 'none'
  return {
    **{
      _PLAIN_NAMES[name] if plain else f'{_NAMES[name]} {personalization}': (
        _ours(
          problem,
          _personalizations(maml_steps)[personalization],
          correction,
          batches,
        )
      )
      for name, correction in _CORRECTIONS.items()
    },
    _BARE: _bare_training(problem, personalization, maml_steps, batches),
  }


def plain(size: Size) -> timing.Section:
  """(a)–(d): the paper's network without personalization, and the peers."""
  batches = [
    _PAPER.batches(i, size.batch_size, size.local_steps, _EXAMPLES)
    for i in range(size.devices)
  ]
  tff_names = ('FedAvg (VariableModel)', 'FedAvg (FunctionalModel)', 'MimeLite')
  epochs = size.local_steps * size.batch_size // _EXAMPLES
  pfl = {}
  # pfl counts epochs, so the number of steps must be one of whole epochs.
  if epochs * _EXAMPLES == size.local_steps * size.batch_size:
    for label, method in (('FedAvg', 'fed_avg'), ('SCAFFOLD', 'scaffold')):
      pfl[f'pfl {label}'] = functools.partial(
        peers.start_pfl,
        size.pfl_python,
        method,
        *(size.devices, _EXAMPLES, size.batch_size, epochs),
        size.repetitions + 1,
      )
  return timing.Section(
    'plain',
    f"The paper's network (797,962 weights), no personalization:"
    f' {size.devices} devices × {size.local_steps} steps ×'
    f' batch {size.batch_size}, a round',
    {
      **_methods(_PAPER, 'none', 1, batches),
      **{f'TFF {name}': _tff(_PAPER, name, batches) for name in tff_names},
      _TFF_IN_ITS_CONTEXT: _tff_in_its_context(_PAPER, batches),
      **pfl,
    },
    (
      *(_BARE, 'FedAvg', 'TFF FedAvg (VariableModel)', _TFF_IN_ITS_CONTEXT),
      'pfl FedAvg',
    ),
  )


def _personalized(
  size: Size, personalization: str, steps: int, title: str
) -> timing.Section:
  batches = [
    _PAPER.batches(i, size.batch_size, 2 * steps, _EXAMPLES)
    for i in range(size.devices)
  ]
  return timing.Section(
    personalization,
    f"The paper's network, {title}: {size.devices} devices × {steps} steps ×"
    f' batch {size.batch_size} (support and query), a round',
    _methods(_PAPER, personalization, size.maml_steps, batches),
    (_BARE, f'FedAvg {personalization}'),
  )


def proto(size: Size) -> timing.Section:
  """(a), (b): the paper's network with prototypes."""
  return _personalized(size, 'proto', size.local_steps, 'prototypes')


def maml(size: Size) -> timing.Section:
  """(a), (b): the paper's network with MAML."""
  title = f'MAML s={size.maml_steps}, second order'
  return _personalized(size, 'maml', size.maml_local_steps, title)


def tiny(size: Size) -> timing.Section:
  """(e): the network for digits, where all is overhead."""
  del size
  devices, steps, batch_size = 10, 10, 10
  cases = {}
  for personalization, batches_per_step in (('none', 1), ('proto', 2)):
    batches = [
      _TINY.batches(i, batch_size, steps * batches_per_step, 30)
      for i in range(devices)
    ]
    methods = _methods(_TINY, personalization, 1, batches)
    bare_loop = methods.pop(_BARE)
    cases |= methods
    if personalization == 'none':
      cases[_BARE] = bare_loop
      for name in ('FedAvg (VariableModel)', 'FedAvg (FunctionalModel)'):
        cases[f'TFF {name}'] = _tff(_TINY, name, batches)
      cases[_TFF_IN_ITS_CONTEXT] = _tff_in_its_context(_TINY, batches)
  methods = _methods(_TINY, 'maml', 5, batches)
  methods.pop(_BARE)
  return timing.Section(
    'tiny',
    f'A tiny network (64-32-16-10), {devices} devices × {steps} steps × batch'
    f' {batch_size}, a round',
    {name: _mean_round(case) for name, case in (cases | methods).items()},
    (_BARE, 'FedAvg', 'TFF FedAvg (VariableModel)'),
  )


def _mean_round(prepare: timing.Prepare) -> timing.Prepare:
  """Rounds on end, as in training: the first after others is slower."""

  def prepare_rounds() -> Callable[[], float]:
    run_round, rounds = prepare(), 10

    def run() -> float:
      start = time.perf_counter()
      for _ in range(rounds):
        run_round()
      return (time.perf_counter() - start) / rounds

    return run

  return prepare_rounds


def evaluation(size: Size) -> timing.Section:
  """(f): the personalized test of 100 devices."""
  devices, examples = 100, 50
  data = [
    collections.OrderedDict(
      train=_PAPER.test_data(i, examples),
      test=_PAPER.test_data(devices + i, examples),
    )
    for i in range(devices)
  ]
  # A bare loop has its examples in memory: to iterate a data set takes longer.
  raw = [
    tuple(
      next(_PAPER.examples(i, examples).batch(examples).as_numpy_iterator())
      for i in (device, devices + device)
    )
    for device in range(devices)
  ]
  weights = _PAPER.model.initial_weights

  def ours(personalization: tff_debias.Personalization) -> timing.Prepare:
    def prepare() -> Callable[[], None]:
      compute = tff_debias.build_personalized_evaluation(
        _PAPER.model, personalization
      )
      return lambda: compute(weights, data) and None

    return prepare

  def bare_loop(name: str) -> timing.Prepare:
    def prepare() -> Callable[[], None]:
      test = bare.build_test(_PAPER.forward, name, size.maml_steps, _MAML_RATE)
      tensors = [tf.constant(w) for w in weights.trainable]

      def run() -> None:
        results = [test(tensors, *pair) for pair in raw]
        tf.reduce_mean(results).numpy()

      return run

    return prepare

  maml_name = f'MAML s={size.maml_steps}'
  personalizations = _personalizations(size.maml_steps)
  return timing.Section(
    'evaluation',
    f"Personalized test of {devices} devices, the paper's network, {examples}"
    ' training and test examples each',
    {
      'Proto': ours(personalizations['proto']),
      'Proto, bare loop': bare_loop('proto'),
      maml_name: ours(personalizations['maml']),
      f'{maml_name}, bare loop': bare_loop('maml'),
    },
    ('Proto, bare loop', f'{maml_name}, bare loop'),
  )


class _Memory:
  """Times rounds in a worker of their own, and keeps the peaks of memory."""

  def __init__(self, max_concurrency: int | None, rounds: int):
    self._max_concurrency = max_concurrency
    self._rounds = rounds
    self._peaks = collections.defaultdict(list)

  def case(
    self,
    name: str,
    prepare: Callable[[tff_debias.ClientStorage], Callable[[], None]],
  ) -> timing.Prepare:
    def prepare_case() -> Callable[[], float]:
      storage = _new_storage()
      run_round = prepare(storage)

      def run() -> float:
        with runtime.local_context(self._max_concurrency) as context:
          run_round()
          pids = (context.worker_pid, os.getpid())
          for pid in pids:
            pathlib.Path(f'/proc/{pid}/clear_refs').write_text('5')
          start = time.perf_counter()
          for _ in range(self._rounds):
            run_round()
          seconds = time.perf_counter() - start
          self._peaks[name].append([_peak_megabytes(pid) for pid in pids])
        # As a run does when it saves a checkpoint: all but the newest states.
        storage.prune(10**9)
        return seconds / self._rounds

      return run

    return prepare_case

  def figures(self, name: str) -> dict[str, str]:
    worker, program = np.median(self._peaks[name], axis=0)
    return {'worker MB': f'{worker:.0f}', 'program MB': f'{program:.0f}'}


def _peak_megabytes(pid: int) -> float:
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  (line,) = (line for line in status.split('\n') if line.startswith('VmHWM'))
  return int(line.split()[1]) / 1024


def population(size: Size) -> timing.Section:
  """(g): 10 participants of populations of 10², 10⁴ and 10⁶ devices."""
  del size
  memory, folders = _Memory(None, 20), {}

  def prepare(
    num_clients: int, storage: tff_debias.ClientStorage
  ) -> Callable[[], None]:
    folders[num_clients] = storage.folder
    process = _TINY.build_process(
      tff_debias.Proto(), _CORRECTIONS['Dyn'], num_clients, storage
    )
    rng, state = random.Random(0), None

    def run_round() -> None:
      nonlocal state
      state = process.initialize() if state is None else state
      data = [
        collections.OrderedDict(
          client_id=f'device {i}', data=_TINY.batches(i, 10, 20, 30)
        )
        for i in rng.sample(range(num_clients), 10)
      ]
      state = process.next(state, data).state

    with runtime.local_context():
      run_round()
    _copy_states(storage.folder, min(num_clients, _MAX_STATES))
    return run_round

  def figures(name: str) -> dict[str, str]:
    folder = folders[int(name.split()[0].replace(',', ''))]
    files = glob.glob(os.path.join(folder, 'clients', '*', '*', '*data*'))
    return {
      **memory.figures(name),
      'states on the disk': f'{len(files):,}',
      'KB a state': f'{os.path.getsize(files[0]) / 1000:.1f}',
    }

  return timing.Section(
    'population',
    'A population with 10 participants a round (tiny network, PFLDyn proto)',
    {
      f'{m:,} devices': memory.case(
        f'{m:,} devices', functools.partial(prepare, m)
      )
      for m in (10**2, 10**4, 10**6)
    },
    ('100 devices',),
    figures,
  )


def _copy_states(folder: str, number: int) -> None:
  """Fills the storage with states of devices that never take part again."""
  (device, *_) = glob.glob(os.path.join(folder, 'clients', '*', '*'))
  files = os.listdir(device)
  for i in range(number):
    copy = os.path.join(folder, 'devices', str(i % 1000), f'copy{i}')
    os.makedirs(copy)
    for name in files:
      os.link(os.path.join(device, name), os.path.join(copy, name))


def participants(size: Size) -> timing.Section:
  """(h): 1 to 200 participants a round."""
  memory = _Memory(None, 1)
  return _participants_section(
    'participants',
    "Participants a round (the paper's network, PFLDyn, 2 local steps)",
    {
      f'{number} participants': (memory, number)
      for number in (1, 2, 5, 10, 20, 50, 100, 200)
    },
    size,
  )


def concurrency(size: Size) -> timing.Section:
  """Devices that are simulated at a time."""
  return _participants_section(
    'concurrency',
    'Devices simulated at a time: 16 participants of the same',
    {
      f'{number} at a time': (_Memory(number, 1), 16) for number in (1, 2, 4, 8)
    },
    size,
  )


def _participants_section(
  name: str, title: str, cases: Mapping[str, tuple[_Memory, int]], size: Size
) -> timing.Section:
  def prepare(
    number: int, storage: tff_debias.ClientStorage
  ) -> Callable[[], None]:
    batches = [
      _PAPER.batches(i, size.batch_size, 2, size.batch_size)
      for i in range(number)
    ]
    none = tff_debias.NoPersonalization()
    return _ours(_PAPER, none, _CORRECTIONS['Dyn'], batches, storage)()

  return timing.Section(
    name,
    title,
    {
      case: memory.case(case, functools.partial(prepare, number))
      for case, (memory, number) in cases.items()
    },
    (),
    lambda case: cases[case][0].figures(case),
  )


def startup(size: Size) -> timing.Section:
  """From the command to its end."""
  del size

  def command(*flags: str) -> timing.Prepare:
    def run() -> None:
      with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
          [
            *(sys.executable, '-m', 'tasks.train', *flags),
            f'--output_dir={folder}/run',
          ],
          capture_output=True,
          text=True,
        )
      # That of absl's --help is 1.
      if result.returncode and '--help' not in flags:
        last_line = result.stderr.strip().split('\n')[-1]
        raise timing.UnavailableError(last_line)

    return lambda: run

  return timing.Section(
    'startup',
    'From the command to its end',
    {
      'tasks.train --help': command('--help'),
      'tasks.train, a round of digits with its test and files': command(
        '--rounds=1'
      ),
    },
  )


#: The sections in the order in which they run.
SECTIONS = {
  section.__name__: section
  for section in (
    plain,
    proto,
    maml,
    tiny,
    evaluation,
    population,
    participants,
    concurrency,
    startup,
  )
}
