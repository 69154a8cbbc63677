import dataclasses
import re

import pytest

from tasks.runs import errors
from tasks.runs import settings as settings_lib
from tests.tasks import small_runs


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
    (
      {'method': 'pfl_dyn', 'correction': 'scaf'},
      'correction of pfl_dyn is dyn. Leave out one',
    ),
    (
      {'method': 'pfl_dyn', 'correction': 'a:B'},
      'method=pfl_dyn and --correction=a:B do not go together',
    ),
    ({'max_grad_norm': float('nan')}, 'max_grad_norm=nan must be a finite'),
    ({'learning_rate': float('inf')}, 'learning_rate=inf must be a finite'),
    (
      {'method': 'per_fed_avg', 'alpha': 7.0},
      '--alpha=7.0 has no effect with --method=per_fed_avg, only with'
      ' --correction=dyn. Leave it out.',
    ),
    (
      {'correction': 'a:B', 'alpha': 7.0},
      '--alpha=7.0 has no effect with --correction=a:B, only',
    ),
    (
      {'maml_steps': 3},
      '--maml_steps=3 has no effect with --personalization=proto, only with'
      ' --personalization=maml',
    ),
    ({'maml_first_order': False}, '--maml_first_order=False has no effect'),
    (
      {'method': 'fed_prox', 'personalization': 'proto'},
      'take --personalization=none, or --tested_personalization=proto',
    ),
    (
      {'tested_personalization': 'maml'},
      'for methods that train without personalization, as fed_avg, but here'
      ' --personalization=proto',
    ),
    (
      {'method': 'fed_avg', 'mu': 0.1},
      '--mu=0.1 has no effect with --method=fed_avg, only with'
      ' --correction=prox',
    ),
    (
      {'partition': 'alid', 'concentration': 0.3},
      '--concentration=0.3 has no effect with --partition=alid',
    ),
  ],
)
def test_wrong_settings_say_what_would_be_right(options, message):
  with pytest.raises(errors.UserError, match=message):
    settings_lib.Settings(**options)


def test_resolve_fills_in_only_what_is_not_given():
  settings = settings_lib.Settings(local_steps=7)
  resolved = settings.resolve({'local_steps': 1, 'batch_size': 2, 'rounds': 3})
  assert (resolved.local_steps, resolved.batch_size) == (7, 2)


def test_resolve_fills_in_only_what_has_an_effect():
  defaults = {
    'partition': 'acid',
    'classes_per_client': 2,
    'concentration': 0.3,
    'alpha': 0.1,
    'maml_steps': 4,
  }
  resolved = settings_lib.Settings().resolve(defaults)
  assert (resolved.alpha, resolved.maml_steps) == (0.1, None)
  assert (resolved.classes_per_client, resolved.concentration) == (2, None)
  resolved = settings_lib.Settings(
    method='per_fed_avg', personalization='maml', partition='dirichlet'
  ).resolve(defaults)
  assert (resolved.alpha, resolved.maml_steps) == (None, 4)
  assert (resolved.classes_per_client, resolved.concentration) == (None, 0.3)
  # What is given and turns out to have no effect is an error here.
  with pytest.raises(errors.UserError, match='--partition=acid'):
    settings_lib.Settings(concentration=0.5).resolve(defaults)


@pytest.mark.parametrize('method', settings_lib.METHODS)
def test_a_correction_and_a_personalization_make_a_method(method):
  named = settings_lib.Settings(method=method)
  correction, personalizes = settings_lib.METHODS[method]
  made = settings_lib.Settings(
    correction=correction,
    personalization='proto' if personalizes else 'none',
  )
  assert made == named
  assert made.method_names == (method, made.personalization)


def test_the_tests_personalization_decides_what_has_an_effect():
  settings = settings_lib.Settings(
    method='fed_avg', tested_personalization='maml', maml_steps=3
  )
  assert settings.method_names == ('fed_avg', 'maml')
  with pytest.raises(errors.UserError, match='--maml_steps=3 has no effect'):
    dataclasses.replace(settings, tested_personalization='proto')


@pytest.mark.parametrize(
  ('options', 'method'),
  [
    ({'method': 'pfl_dyn', 'alpha': 0.1}, 'per_fed_avg'),
    ({'method': 'fed_prox', 'mu': 0.1}, 'fed_avg'),
    ({'correction': 'a:B(gamma=1)', 'personalization': 'maml'}, 'per_fed_avg'),
  ],
)
def test_the_uncorrected_settings_differ_in_the_correction_only(
  options, method
):
  settings = settings_lib.Settings(**options, seed=3)
  expected = settings_lib.Settings(
    method=method, personalization=settings.personalization, seed=3
  )
  assert settings.uncorrected() == expected


def test_ones_own_correction_is_written_in_one_way():
  settings = settings_lib.Settings(
    correction='a.b:Mine( gamma = .5,name="x" )', personalization='c:Other()'
  )
  assert settings.correction == "a.b:Mine(gamma=0.5, name='x')"
  assert settings.personalization == 'c:Other'
  assert settings.method is None
  assert settings.method_names == ("Mine(gamma=0.5, name='x')", 'Other')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('dynn', 'is not one of none, dyn, scaf, prox, nor of .* mean dyn'),
    ('a:B(0.5)', 'each NAME once and each VALUE a literal'),
    ('a:B(gamma=x)', 'must be of the form'),
    ('a:B(gamma=__import__("os").getcwd())', 'must be of the form'),
    ('a:B(**{"gamma": 1})', 'must be of the form'),
    ('a:B(gamma=1, gamma=2)', 'must be of the form'),
    ('a:B(', 'must be of the form'),
    ('a:b.C', 'must be of the form'),
    ('a:3', 'must be of the form'),
    ('a b:C', 'must be of the form'),
    (':C', 'must be of the form'),
    ('a:', 'must be of the form'),
  ],
)
def test_another_form_than_module_and_class_is_an_error(text, message):
  with pytest.raises(ValueError, match=f'--correction=.*{message}'):
    settings_lib.Settings(correction=text)


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
  with pytest.raises(errors.UserError, match=re.escape(message)):
    settings_lib.parse(name, text)


@pytest.mark.parametrize(
  ('flag', 'status', 'said'),
  [
    ('--help', 1, '--maml_learning_rate'),
    ('--method=x', 2, 'Error: --method=x is not one of'),
    ('--rounds=0', 2, 'rounds'),
    ('surplus', 2, "unexpected argument 'surplus'"),
    ('--correction=module', 2, 'nor of the form MODULE:CLASS'),
  ],
)
def test_help_and_wrong_flags_do_not_wait_for_tensorflow(flag, status, said):
  result = small_runs.run_program('train', flag, options=('-X', 'importtime'))
  assert result.returncode == status
  assert said in result.stdout + result.stderr
  assert 'Traceback' not in result.stderr
  assert 'absl.flags' in result.stderr
  assert 'tensorflow' not in result.stderr


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'batch_size': 10**9}, '--batch_size=1000000000 must be at most 1000000'),
    ({'local_steps': 10**12}, '--local_steps=1000000000000 must be at most'),
    (
      {'local_steps': 10**5, 'batch_size': 10**5},
      '--local_steps=100000 times --batch_size=100000 must be at most 10000000',
    ),
    (
      {'maml_steps': 10**9, 'personalization': 'maml'},
      '--maml_steps=1000000000 must be at most 1000',
    ),
    (
      {'concentration': 1e-300, 'partition': 'dirichlet'},
      '--concentration=1e-300 must be at least 1e-06',
    ),
    ({'seed': 2**32}, '--seed=4294967296 must be at most 4294967295'),
  ],
)
def test_absurd_numbers_are_refused(given, message):
  with pytest.raises(errors.UserError, match=message):
    settings_lib.Settings(**given)
