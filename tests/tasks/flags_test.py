"""What programs say before they import TensorFlow."""

import pytest

from tasks.runs import errors
from tests.tasks import small_runs

_TRAIN = [
  ('--metod=fed_avg', 'There is no flag --metod. Did you mean method?'),
  ('--lr=1', 'There is no flag --lr. Did you mean learning_rate?'),
  ('fed_avg', 'There is an argument without a flag, fed_avg'),
  ('--rounds=0', '--rounds=0 must be at least 1'),
  ('--rounds=x', '--rounds=x must be of int'),
  ('--jit_compile=3', '--jit_compile=3 must be of bool'),
  ('--method=pfl_din', 'method=pfl_din is not one of .* mean pfl_dyn'),
  ('--task=digit', 'task=digit is not one of .* Did you mean digits'),
  ('--learning_rate=0', 'learning_rate=0.0 must be above 0'),
  ('--alpha=nan', 'alpha=nan must be above 0'),
  ('--weight_decay=-1', 'weight_decay=-1.0 must be at least 0'),
  ('--held_out_share=1', 'held_out_share=1.0 must be below 1'),
  ('--validation_share=0.6', '=0.6 must be at most 0.5'),
  ('--seed=4294967296', '--seed=4294967296 must be at most 4294967295'),
  ('--correction=module', 'one of your own, MODULE:NAME'),
  (
    '--method=fed_avg --personalization=maml',
    'maml, which is per_fed_avg. For tests .*--tested_personalization',
  ),
  (
    '--method=pfl_dyn --correction=scaf',
    'pfl_dyn does not go with --correction=scaf .* is pfl_scaf',
  ),
  (
    '--method=fed_prox --personalization=proto',
    'personalization=proto, which is none of the methods',
  ),
  (
    '--method=pfl_dyn --correction=a:B',
    'pfl_dyn does not go with --correction=a:B',
  ),
  (
    '--method=per_fed_avg --alpha=7',
    '--alpha=7.0 has no effect with --correction=none, only with'
    ' --correction=dyn. Leave it out.',
  ),
  ('--correction=a:B --alpha=7', '--alpha=7.0 has no effect with .*=a:B, only'),
  (
    '--maml_steps=3 --personalization=proto',
    '--maml_steps=3 has no effect with --personalization=proto, only with'
    ' --personalization=maml',
  ),
  (
    '--nomaml_first_order --personalization=proto',
    '--maml_first_order=False has no effect',
  ),
  (
    '--tested_personalization=maml --personalization=proto',
    'for methods that train without personalization, but here'
    ' --personalization=proto',
  ),
  # Digits are split by ALID where no flag says otherwise.
  ('--concentration=0.3', '=0.3 has no effect with --partition=alid'),
  ('--method=fed_avg --baseline', '--baseline has no effect with'),
  ('--clients_per_round=400', 'must be at most 100, --num_clients less'),
  ('--classes_per_client=11', 'must be at most 10, the number of classes'),
  ('--partition=natural', 'take --partition=acid, alid or dirichlet'),
  ('--task=emnist --partition=acid', 'take --partition=natural'),
  ('--task=emnist --num_clients=3401', 'must be at most 3400, .* users in'),
  ('--task=npz', '--data_dir=None must be a folder with a file DEVICE.npz'),
  ('--task=npz --data_dir=/nowhere', '--data_dir=/nowhere must be a folder'),
  ('--run=/nowhere', '/nowhere holds no run'),
  ('--run=/nowhere --tuned=x', 'leave out --output_dir and --tuned'),
]
_COMPARE = [
  ('--methods=pfl_dynn', 'method=pfl_dynn is not one of .* mean pfl_dyn?'),
  ('--task=cifar', 'Did you mean cifar10'),
  ('--task=npz', 'must be a folder with a file DEVICE.npz'),
  ('--personalizations=mamml', 'Did you mean maml?'),
  ('--seeds=0,x', '--seeds=0,x must be of int'),
  ('--methods=', 'must not be empty'),
  (
    '--methods=per_fed_avg --alpha=7',
    '--alpha=7.0 has no effect on any of the methods. .*Leave it out',
  ),
  (
    '--personalizations=proto --nomaml_first_order',
    '--maml_first_order=False has no effect on any of the methods',
  ),
  ('--targets=0.9,high', '--targets=0.9,high must be of float'),
  ('--override=pfl_dyn/maml:alpha', 'must give NAME=VALUE'),
  (
    '--override=pfl_dyn/maml:alfa=1',
    'alfa is not one of the settings that .* Did you mean alpha',
  ),
  ('--override=pfl_dyn/maml:alpha=x', '--alpha=x must be of float'),
  ('--override=fed_dyn/none:alpha=1', '=fed_dyn/none is none of the runs'),
  (
    '--override=pfl_dyn/maml:clients_per_round=9',
    'clients_per_round is not one of the settings that may differ',
  ),
]
_TUNE = [
  ('', 'Give the values to choose from: --grid=NAME=V1,V2'),
  ('--grid=alfa=1', 'Did you mean alpha?'),
  ('--grid=alpha=', '--grid=alpha= must give NAME=VALUE'),
  ('--grid=alpha=1,x', '--alpha=x must be of float'),
  ('--grid=seed=1', 'seed is not one of the settings that may differ'),
  ('--grid=alpha=1 --alpha=2', 'gives alpha a second time'),
  ('--grid=mu=1,2 --methods=pfl_dyn', '--grid: mu has no effect on any method'),
  ('--grid=alpha=1 --validation_share=0', '_share=0.0 must be above 0'),
]
_OTHERS = [
  ('evaluate', '', 'Name the folder of the run: --run=runs/NAME'),
  ('evaluate', '--run=/nowhere', '/nowhere holds no run'),
  ('evaluate', '--rum=x', 'There is no flag --rum. Did you mean run'),
  ('evaluate', '--few_shot=1,0', '--few_shot=0 must be at least 1'),
  ('personalize', '', '--run=runs/NAME must name'),
  ('personalize', '--run=a', 'either --client'),
  ('personalize', '--run=a --client=b --examples=c', 'either --client'),
  ('personalize', '--run=/nowhere --client=a', 'holds no run'),
  ('benchmark', '--case=tini', '--case=tini is not one of .* mean tiny'),
]


@pytest.mark.parametrize(
  ('program', 'flags', 'message'),
  [
    *(('train', *case) for case in _TRAIN),
    *(('compare', *case) for case in _COMPARE),
    *(('tune', *case) for case in _TUNE),
    *_OTHERS,
  ],
)
def test_wrong_flags_say_what_would_be_right(program, flags, message):
  with pytest.raises(errors.UserError, match=message):
    small_runs.prepare(program, *flags.split())


def shown(capsys, program, *flags):
  """What a program prints that then ends."""
  with pytest.raises(SystemExit) as end:
    small_runs.prepare(program, *flags)
  assert not end.value.code
  return capsys.readouterr().out


def test_help_has_the_defaults_of_the_task_and_breaks_no_word(capsys):
  text = shown(capsys, 'train', '--help', '--task=cifar10')
  words = ' '.join(text.split())
  assert 'at least 1. Only with --partition=acid or alid. [5]' in words
  assert 'at least 1. A finished run goes on if the number' in words
  assert text.count('  python -m tasks.train') == 3
  assert max(map(len, text.splitlines())) <= 80
  for group in ('what', 'method', 'training', 'tests', 'output'):
    assert f'\n{group}:\n' in text
  plain = shown(capsys, 'train', '--help')
  assert '[alid]' in plain and '[acid]' in text
  assert '[1]' in shown(capsys, 'train', '--help', '--task=npz')


def test_values_have_the_kind_that_the_help_says(capsys):
  flags = ['--alpha=1e-2', '--local_steps', '5', '--maml_first_order']
  flags += ['--nojit_compile', '--seed=1', '--seed=2', '--max_grad_norm=inf']
  lines = shown(capsys, 'train', *flags, '--show_settings').splitlines()
  expected = ['--alpha=0.01', '--local_steps=5', '--maml_first_order=True']
  expected += ['--jit_compile=False', '--seed=2', '--max_grad_norm=inf']
  assert set(expected) <= set(lines)


@pytest.mark.parametrize(
  'flags',
  [
    ['--task=mini_imagenet', '--method=pfl_scaf'],
    ['--task=npz', '--correction=a:B(gamma=1)'],
  ],
)
def test_the_settings_that_are_shown_without_data_give_the_run(capsys, flags):
  lines = shown(capsys, 'train', *flags, '--show_settings')
  again = shown(capsys, 'train', *lines.splitlines(), '--show_settings')
  assert again == lines
  if 'mini' in flags[0]:
    assert '--rounds=1000\n' in lines and '--classes_per_client=20\n' in lines
    assert '--alpha' not in lines and '--maml_' not in lines


def runs(capsys, program, *flags):
  """The folder of a comparison, and those of its runs with their flags."""
  given = ['--methods=per_fed_avg,pfl_dyn', '--personalizations=maml']
  given += ['--seeds=0', '--show_settings', *flags]
  lines = [
    line.partition(': ') for line in shown(capsys, program, *given).splitlines()
  ]
  common = lines[0][0].rpartition('/')[0]
  return common, {path[len(common) + 1 :]: flags for path, _, flags in lines}


def test_the_settings_of_every_run_are_shown(capsys):
  _, found = runs(capsys, 'compare', '--methods=fed_avg,pfl_dyn', '--seeds=7')
  assert len(found) == 2
  assert all('--rounds=100 ' in f and '--seed=7' in f for f in found.values())
  assert '--maml_learning_rate=1.0' in found['pfl_dyn_maml_seed7']


def test_other_settings_have_another_folder(capsys):
  path, names = runs(capsys, 'compare')
  plain = ['per_fed_avg_maml_seed0', 'pfl_dyn_maml_seed0']
  assert path == 'runs/compare_digits_alid' and list(names) == plain
  # The task's defaults and the rounds are not settings of other runs.
  same, again = runs(capsys, 'compare', '--num_clients=100', '--rounds=7')
  assert same == path and list(again) == plain
  other, _ = runs(capsys, 'compare', '--batch_size=7', '--partition=acid')
  assert other == 'runs/compare_digits_acid_batch_size=7'
  # What only some runs have is in their names, and the others are not run anew.
  one = '--override=pfl_dyn/maml:alpha=0.5'
  same, names = runs(capsys, 'compare', one)
  assert same == path
  assert list(names) == [plain[0], 'pfl_dyn_maml_alpha=0.5_seed0']
  other, _ = runs(capsys, 'compare', '--alpha=0.5', '--maml_steps=3')
  assert other == 'runs/compare_digits_alid_maml_steps=3_alpha=0.5'


def test_a_tuning_leaves_its_grid_to_the_names_of_the_runs(capsys):
  path, names = runs(capsys, 'tune', '--grid=alpha=0.1,0.5')
  assert path == 'runs/tune_digits_alid_validation_share=0.2'
  assert list(names) == [
    'per_fed_avg_maml_seed0',
    'pfl_dyn_maml_alpha=0.1_seed0',
    'pfl_dyn_maml_alpha=0.5_seed0',
  ]
