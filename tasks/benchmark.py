"""Measures speed against bare loops and peers: `python -m tasks.benchmark`.

Everything in one run on one machine, the cases of a section in turn. Where a
ratio says less than 1, the case is faster than what it is divided by.
"""

import datetime
import os
import platform
import shlex
import tempfile

from absl import flags

from tasks import cli as program

_SECTIONS = (
  'plain',
  'proto',
  'maml',
  'tiny',
  'evaluation',
  'population',
  'participants',
  'concurrency',
  'startup',
)
_CHOSEN = flags.DEFINE_multi_enum(
  'section',
  list(_SECTIONS),
  _SECTIONS,
  'What is measured; can be given several times. By default all.',
)
_REPETITIONS = flags.DEFINE_integer(
  'repetitions', 5, 'How often each case is measured.', lower_bound=1
)
_DEVICES = flags.DEFINE_integer(
  'devices', 10, 'The participants (plain, proto, maml).', lower_bound=1
)
_LOCAL_STEPS = flags.DEFINE_integer(
  'local_steps',
  50,
  'The local steps (plain, proto). For pfl a multiple of 10: it has epochs.',
  lower_bound=1,
)
_MAML_LOCAL_STEPS = flags.DEFINE_integer(
  'maml_local_steps',
  5,
  'The local steps (maml): one takes as long as twenty others.',
  lower_bound=1,
)
_MAML_STEPS = flags.DEFINE_integer(
  'maml_steps', 5, 'The steps s of MAML (maml, evaluation).', lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 50, 'The batch size (plain, proto, maml).', lower_bound=1
)
_PFL_PYTHON = flags.DEFINE_string(
  'pfl_python',
  'uv run --quiet --no-project --python=3.11 --with=pfl==0.6.0 --with=torch'
  ' python',
  'The command of a Python with pfl 0.6.0 and PyTorch. The default makes an'
  ' environment, with the PyTorch that uv takes by itself.',
)
_OUTPUT_DIR = flags.DEFINE_string(
  'output_dir', 'runs/benchmark', 'The folder for benchmark.md and .csv.'
)


def main() -> None:
  """Measures the chosen sections, and writes after each."""
  from tasks.benchmarks import sections
  from tasks.benchmarks import timing
  from tff_debias import runtime

  size = sections.Size(
    devices=_DEVICES.value,
    local_steps=_LOCAL_STEPS.value,
    maml_local_steps=_MAML_LOCAL_STEPS.value,
    maml_steps=_MAML_STEPS.value,
    batch_size=_BATCH_SIZE.value,
    repetitions=_REPETITIONS.value,
    pfl_python=shlex.split(_PFL_PYTHON.value),
  )
  results = []
  for name in dict.fromkeys(_CHOSEN.value):
    with runtime.local_context(), tempfile.TemporaryDirectory() as scratch:
      # The states of devices are large: each section's go when it ends.
      tempfile.tempdir = scratch
      section = sections.SECTIONS[name](size)
      results.append(timing.measure(section, _REPETITIONS.value))
      tempfile.tempdir = None
    print(timing.to_markdown(results[-1]), flush=True)
    timing.write(results, _machine(), _OUTPUT_DIR.value)
  print(f'Written to {_OUTPUT_DIR.value}: benchmark.md, benchmark.csv')


def _machine() -> str:
  import tensorflow as tf
  import tensorflow_federated as tff

  with open('/proc/cpuinfo') as file:
    models = [line for line in file if line.startswith('model name')]
  cpu = models[0].split(':')[1].strip() if models else platform.processor()
  return (
    f'{datetime.date.today()}, {os.cpu_count()} cores ({cpu}), Python'
    f' {platform.python_version()}, tensorflow {tf.__version__},'
    f' tensorflow-federated {tff.__version__}.'
  )


def run() -> None:
  """The console script."""
  program.run(main, lambda: None, 'The same command begins anew.')


if __name__ == '__main__':
  run()
