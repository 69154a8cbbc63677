"""Measures rounds against a bare loop and TFF: `python -m tasks.benchmark`.

All is measured in one run on one machine, the methods of a case in turn. A
ratio below 1 says that a method is faster than the one it is divided by. Only
methods without personalization have such ratios.
"""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import gc
import os
import platform
import signal
import statistics
import tempfile
import timeit
from typing import Any
from typing import TypeAlias

from tasks import cli

#: Runs the next round of a method.
Round: TypeAlias = Callable[[], None]

_BARE, _TFF = 'bare TensorFlow loop', "TFF's FedAvg in TFF's context"
_LEARNING_RATE, _MAML_RATE = 0.1, 0.01
_WEIGHT_DECAY, _MAX_GRAD_NORM = 1e-3, 10.0


_USAGE = """
Measures rounds against a bare TensorFlow loop and TFF, all in one run.

what:
  --case=NAME,NAME,…  What to measure: the paper's network without
    personalization (plain), with prototypes (proto), with MAML (maml); a tiny
    network with all (tiny). One of plain, proto, maml, tiny.
    [plain,proto,maml,tiny]
  --repetitions=N  The times that each method is measured, at least 1. [5]

training:
  --clients_per_round=N  The devices (not tiny), at least 1. [10]
  --local_steps=N  The steps of a device (plain, proto), at least 1. [50]
  --maml_local_steps=N  The same (maml), as a step is longer; at least 1. [5]
  --maml_steps=N  The steps s of MAML, at least 1. [5]
  --batch_size=N  The batch size (not tiny), at least 1. [50]

output:
  --output_dir=NAME  The folder for benchmark.md. [runs/benchmark]

Examples:
  python -m tasks.benchmark
  python -m tasks.benchmark --case=tiny
  python -m tasks.benchmark --case=plain,maml --repetitions=10
"""


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what measures and writes the tables."""
  args = cli.parse(_USAGE, argv)
  return lambda: _measure_all(args)


def _measure_all(args: cli.Args) -> None:
  from tasks.reports import tables
  from tff_debias import runtime

  # TFF ends its worker by an interrupt, which the worker of a program in the
  # background would ignore, as that program does.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.makedirs(args.output_dir, exist_ok=True)
  path = os.path.join(args.output_dir, 'benchmark.md')
  report = [_machine()]
  for case in args.case:
    with runtime.local_context(), tempfile.TemporaryDirectory() as scratch:
      title, rounds = build_rounds(case, args, scratch)
      # A small round is slower after those of other methods.
      in_a_row = 10 if case == 'tiny' else 1
      seconds = measure(rounds, args.repetitions, in_a_row)
    del rounds
    gc.collect()  # TFF's worker ends when its context is freed.
    report.append(f'### {title}\n\n{tables.to_markdown(to_rows(seconds))}')
    print(report[-1], flush=True)
    with open(path, 'w') as file:
      file.write('\n\n'.join(report) + '\n')
  print(f'Written to {path}')


def measure(
  rounds: Mapping[str, Round], repetitions: int, in_a_row: int
) -> dict[str, list[float]]:
  """The seconds of a round by method, measured in turn: 1, 2, …, 1, 2, ….

  A machine that becomes slower or faster does so for all of them then. The
  first repetition is not counted. `in_a_row` rounds give one mean.
  """
  import tqdm

  seconds: dict[str, list[float]] = {name: [] for name in rounds}
  for repetition in tqdm.trange(repetitions + 1):
    for name, run in rounds.items():
      gc.collect()
      taken = timeit.timeit(run, number=in_a_row) / in_a_row
      if repetition:
        seconds[name].append(taken)
  return seconds


def to_rows(seconds: Mapping[str, Sequence[float]]) -> list[dict[str, str]]:
  """The rows of a table, in which a ratio is the median of the repetitions'."""
  rows = []
  for name, values in seconds.items():
    row = {
      '': name,
      'median s': f'{statistics.median(values):.3g}',
      'min … max': f'{min(values):.3g} … {max(values):.3g}',
    }
    for other in (_BARE, _TFF):
      reference = seconds.get(f'{name.split(": ")[0]}: {other}', ())
      ratios = [a / b for a, b in zip(values, reference, strict=False)]
      row[f'÷ {other}'] = f'{statistics.median(ratios):.2f}' if ratios else ''
    rows.append(row)
  return rows


def build_rounds(
  case: str, args: cli.Args, folder: str
) -> tuple[str, dict[str, Round]]:
  """A title, and for each method a function that runs its next round.

  All have the same network and the same random images, as only time counts.
  The devices of ours keep their states in `folder`.
  """
  import numpy as np
  import tensorflow as tf

  from tasks.catalog import networks
  from tasks.runs import pipeline
  import tff_debias

  title, build = "The paper's network (797,962 weights)", networks.cnn
  shape: tuple[int, ...] = (32, 32, 3)
  examples, kinds = 500, [case]
  devices, batch_size = args.clients_per_round, args.batch_size
  steps = args.maml_local_steps if case == 'maml' else args.local_steps
  if case == 'tiny':
    title, shape, examples = 'A tiny network (64-32-16-10)', (8, 8), 30
    build = functools.partial(networks.mlp, hidden_sizes=(32, 16))
    kinds, devices, batch_size, steps = ['plain', 'proto', 'maml'], 10, 10, 10

  def build_keras_model() -> tf.keras.Model:
    scaling = tf.keras.layers.Rescaling(1 / 255)
    return build(shape, num_outputs=10, scaling=scaling)

  def device(seed: int) -> tf.data.Dataset:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (examples, *shape), np.uint8)
    y = rng.integers(0, 10, examples, np.int32)
    return tf.data.Dataset.from_tensor_slices(collections.OrderedDict(x=x, y=y))

  model = networks.to_model(build_keras_model(), device(0))
  personalizations = {
    'plain': tff_debias.NoPersonalization(),
    'proto': tff_debias.Proto(),
    'maml': tff_debias.Maml(args.maml_steps, _MAML_RATE),
  }
  rounds: dict[str, Round] = {}
  for kind in kinds:
    personalization = personalizations[kind]
    num_batches = steps * personalization.batches_per_step
    batches = [
      pipeline.training_dataset(device(i), batch_size, num_batches, seed=i)
      for i in range(devices)
    ]
    participants = [
      collections.OrderedDict(client_id=f'device {i}', data=data)
      for i, data in enumerate(batches)
    ]
    for name, correction, data in (
      ('uncorrected', tff_debias.NoCorrection(), batches),
      ('Dyn', tff_debias.Dyn(alpha=0.1), participants),
      ('Scaf', tff_debias.Scaf(), participants),
    ):
      process = tff_debias.build_learning_process(
        model,
        personalization,
        correction,
        learning_rate=_LEARNING_RATE,
        weight_decay=_WEIGHT_DECAY,
        max_grad_norm=_MAX_GRAD_NORM,
        num_clients=devices,
        storage=tff_debias.ClientStorage(os.path.join(folder, kind, name)),
      )
      rounds[f'{kind}: {name}'] = _rounds(process, data)
    if kind == 'plain':
      rounds[f'{kind}: {_BARE}'] = _bare_rounds(build_keras_model(), batches)
      rounds[f'{kind}: {_TFF}'] = _tff_rounds(build_keras_model, batches)
  sizes = f'{devices} devices × {steps} steps × batch {batch_size}'
  return f'{title}, a round of {sizes} ({case})', rounds


def _rounds(process: Any, data: Sequence[Any]) -> Round:
  state = process.initialize()

  def run() -> None:
    nonlocal state
    state = process.next(state, data).state

  return run


def _tff_rounds(
  build_keras_model: Callable[[], Any], batches: Sequence[Any]
) -> Round:
  import tensorflow as tf
  import tensorflow_federated as tff

  def build_model() -> tff.learning.models.VariableModel:
    return tff.learning.models.from_keras_model(
      build_keras_model(),
      loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      input_spec=batches[0].element_spec,
      metrics=[tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
    )

  context = tff.backends.native.create_sync_local_cpp_execution_context(
    max_concurrent_computation_calls=os.cpu_count()
  )
  stack = tff.framework.get_context_stack()
  with stack.install(context):
    optimizer = tff.learning.optimizers.build_sgdm(_LEARNING_RATE)
    process = tff.learning.algorithms.build_unweighted_fed_avg(
      build_model, optimizer
    )
    run = _rounds(process, batches)

  def run_in_context() -> None:
    with stack.install(context):
      run()

  return run_in_context


def _bare_rounds(keras_model: Any, batches: Sequence[Any]) -> Round:
  import tensorflow as tf

  train = build_bare_training(keras_model)
  train(batches[0])  # Keras cannot trace it after TFF has built a model.

  def run() -> None:
    results = [train(data) for data in batches]
    for parts in zip(*results, strict=True):
      (tf.add_n(parts) / len(parts)).numpy()

  return run


def build_bare_training(keras_model: Any) -> Callable[[Any], Any]:
  """The local work of a device in plain TensorFlow, without personalization.

  There is neither a correction nor a metric. The function takes batches, and
  gives the weights after them; each time it starts at the weights of now.
  """
  import tensorflow as tf

  loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  weights = keras_model.trainable_variables
  start = [tf.constant(w) for w in weights]

  @tf.function
  def train(batches):
    for w, value in zip(weights, start, strict=True):
      w.assign(value)
    for batch in batches:
      with tf.GradientTape() as tape:
        value = loss(batch['y'], keras_model(batch['x']))
      gradient = tape.gradient(value, weights)
      gradient, _ = tf.clip_by_global_norm(gradient, _MAX_GRAD_NORM)
      for w, g in zip(weights, gradient, strict=True):
        w.assign_sub(_LEARNING_RATE * (g + _WEIGHT_DECAY * w))
    return [tf.identity(w) for w in weights]

  return train


def _machine() -> str:
  import tensorflow as tf
  import tensorflow_federated as tff

  from tasks.reports import provenance

  return (
    f'{", ".join(provenance.origin().values())}, {os.cpu_count()} cores'
    f' ({platform.machine()}), Python {platform.python_version()}, tensorflow'
    f' {tf.__version__}, tensorflow-federated {tff.__version__}.'
  )


if __name__ == '__main__':
  cli.run(prepare)
