import subprocess
import sys

# In a process of its own: each program defines flags of the same names.
_PROGRAM = """
import sys

from absl import flags
from absl.testing import flagsaver

from tasks import {program} as program
from tasks import comparison

for argv in {commands!r}:
  with flagsaver.flagsaver():
    flags.FLAGS([sys.argv[0], *argv])
    made = comparison.Comparison('{program}', program._members())
    print(made.path, *(run.folder.path for run in made._runs))
"""


def folders(program, *commands):
  """The folder of each command's comparison, and those of its runs."""
  flags = ['--methods=per_fed_avg,pfl_dyn', '--personalizations=maml']
  commands = [[*flags, '--seeds=0', *command] for command in commands]
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM.format(program=program, commands=commands)],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  return [line.split() for line in result.stdout.splitlines()]


def test_other_settings_have_another_folder():
  override = '--override=pfl_dyn/maml:alpha=0.5'
  found = folders(
    'compare',
    [],
    ['--num_clients=40', '--rounds=7'],
    ['--batch_size=7', '--partition=alid'],
    [override],
    ['--alpha=0.5', '--maml_steps=3'],
  )
  plain, same, other, overridden, given = found
  base = 'runs/compare_digits_acid'
  assert plain == [
    base,
    f'{base}/per_fed_avg_maml_seed0',
    f'{base}/pfl_dyn_maml_seed0',
  ]
  # The task's defaults and the rounds are not settings of other runs.
  assert same == plain
  assert other[0] == 'runs/compare_digits_alid_batch_size=7'
  # What only some runs have is in their names, and the others are not run anew.
  assert overridden == [*plain[:2], f'{base}/pfl_dyn_maml_alpha=0.5_seed0']
  assert given[0] == f'{base}_maml_steps=3_alpha=0.5'


def test_a_tuning_leaves_its_grid_to_the_names_of_the_runs():
  ((folder, *runs),) = folders('tune', ['--grid=alpha=0.1,0.5'])
  assert folder == 'runs/tune_digits_acid_validation_share=0.2'
  assert [run.removeprefix(f'{folder}/') for run in runs] == [
    'per_fed_avg_maml_seed0',
    'pfl_dyn_maml_alpha=0.1_seed0',
    'pfl_dyn_maml_alpha=0.5_seed0',
  ]
