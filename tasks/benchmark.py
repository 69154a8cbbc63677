"""Measures speed against bare loops and peers: `python -m tasks.benchmark`.

All is measured in one run on one machine, the cases of a section in turn. A
ratio below 1 says that a case is faster than the one that it is divided by.
"""

import os
import platform
import tempfile

from absl import flags

from tasks import cli
from tasks.runs import folder as folder_lib

_SECTIONS = (
  *('plain', 'proto', 'maml', 'tiny', 'evaluation'),
  *('population', 'participants', 'concurrency', 'startup'),
)
_CHOSEN = flags.DEFINE_multi_enum(
  'section',
  list(_SECTIONS),
  _SECTIONS,
  'A section to measure; can be given several times. By default all.',
)
for _name, _default, _help in (
  ('repetitions', 5, 'The times that each case is measured.'),
  ('clients_per_round', 10, 'The devices in a round (plain, proto, maml).'),
  ('local_steps', 50, 'The steps (plain, proto). For pfl a multiple of 10.'),
  ('maml_local_steps', 5, 'The steps (maml): one takes as long as 20 others.'),
  ('maml_steps', 5, 'The steps s of MAML (maml, evaluation).'),
  ('batch_size', 50, 'The batch size (plain, proto, maml).'),
):
  flags.DEFINE_integer(_name, _default, _help, lower_bound=1)
flags.DEFINE_string(
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

  results = []
  for name in dict.fromkeys(_CHOSEN.value):
    context = runtime.local_context()
    with context, tempfile.TemporaryDirectory() as scratch:
      # The states of the devices are large. Those of a section go at its end.
      tempfile.tempdir = scratch
      section = sections.SECTIONS[name](flags.FLAGS)
      results.append(timing.measure(section, flags.FLAGS.repetitions))
      tempfile.tempdir = None
    print(timing.to_markdown(results[-1]), flush=True)
    timing.write(results, _machine(), _OUTPUT_DIR.value)
  print(f'Written to {_OUTPUT_DIR.value}: benchmark.md, benchmark.csv')


def _machine() -> str:
  import tensorflow as tf
  import tensorflow_federated as tff

  from tasks.reports import provenance

  with open('/proc/cpuinfo') as file:
    models = [line for line in file if line.startswith('model name')]
  cpu = models[0].split(':')[1].strip() if models else platform.processor()
  return (
    f'{provenance.today()}, {provenance.version()}, {os.cpu_count()} cores'
    f' ({cpu}), Python {platform.python_version()}, tensorflow'
    f' {tf.__version__}, tensorflow-federated {tff.__version__}.'
  )


def _check_flags() -> None:
  folder_lib.check_output_dir(_OUTPUT_DIR.value)


if __name__ == '__main__':
  cli.run(main, _check_flags, 'The same command begins anew.')
