import re
import subprocess
import sys

import pytest

from tasks.runs import settings as settings_lib


def test_defaults_are_pfl_dyn_with_prototypes_on_digits():
  settings = settings_lib.Settings()
  assert (settings.task, settings.correction) == ('digits', 'dyn')
  assert settings.personalization == 'proto'
  assert settings_lib.Settings(method='scaffold').personalization == 'none'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'method': 'pfl_din'}, 'method=pfl_din is not one of .* mean pfl_dyn'),
    ({'task': 'digit'}, 'task=digit is not one of .* Did you mean digits'),
    ({'learning_rate': 0.0}, 'learning_rate=0.0 must be above 0'),
    ({'weight_decay': -1.0}, 'weight_decay=-1.0 must be at least 0'),
    ({'alpha': float('nan')}, 'alpha=nan must be a finite number'),
    ({'clients_per_round': 0}, 'clients_per_round=0 must be at least 1'),
    (
      {'method': 'fed_avg', 'personalization': 'maml'},
      'do not go together: take --method=per_fed_avg',
    ),
    (
      {'method': 'pfl_scaf', 'personalization': 'none'},
      'do not go together: take --method=scaffold',
    ),
  ],
)
def test_wrong_settings_say_what_would_be_right(options, message):
  with pytest.raises(settings_lib.SettingsError, match=message):
    settings_lib.Settings(**options)


def test_resolve_fills_in_only_what_is_not_given():
  settings = settings_lib.Settings(local_steps=7)
  resolved = settings.resolve({'local_steps': 1, 'batch_size': 2, 'rounds': 3})
  assert (resolved.local_steps, resolved.batch_size) == (7, 2)


def test_parse_gives_the_type_of_the_setting():
  parse = settings_lib.parse
  assert parse('alpha', '1e-2') == 0.01
  assert parse('local_steps', '5') == 5
  assert parse('maml_first_order', 'True') is True
  assert parse('task', 'digits') == 'digits'


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('alfa', '1', "no setting 'alfa'. Did you mean alpha?"),
    ('alpha', 'x', '--alpha=x must be of float'),
    ('local_steps', '1.5', '--local_steps=1.5 must be of int'),
    ('maml_first_order', 'si', '--maml_first_order=si must be of bool'),
  ],
)
def test_parse_says_what_is_wrong(name, text, message):
  with pytest.raises(settings_lib.SettingsError, match=re.escape(message)):
    settings_lib.parse(name, text)


@pytest.mark.parametrize(
  ('flag', 'status', 'said'),
  [
    ('--help', 1, '--maml_learning_rate'),
    ('--method=x', 2, 'Error: --method=x is not one of'),
    ('--rounds=0', 1, 'rounds'),
    ('surplus', 2, "unexpected argument 'surplus'"),
  ],
)
def test_help_and_wrong_flags_do_not_wait_for_tensorflow(flag, status, said):
  result = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'tasks.train', flag],
    capture_output=True,
    text=True,
  )
  assert result.returncode == status
  assert said in result.stdout + result.stderr
  assert 'Traceback' not in result.stderr
  assert 'absl.flags' in result.stderr
  assert 'tensorflow' not in result.stderr
