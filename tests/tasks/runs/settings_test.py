import dataclasses
import math
import re

import pytest

from tasks.runs import errors
from tasks.runs import methods
from tasks.runs import settings as settings_lib


def test_defaults_are_pfl_dyn_on_digits_and_the_tasks_personalization():
  settings = settings_lib.Settings()
  assert (settings.task, settings.correction) == ('digits', 'dyn')
  assert settings.personalization == 'maml'
  assert settings_lib.Settings(task='cifar10').personalization == 'proto'
  assert settings_lib.Settings(method='scaffold').personalization == 'none'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'method': 'pfl_din'}, 'method=pfl_din is not one of .* mean pfl_dyn'),
    ({'task': 'digit'}, 'task=digit is not one of .* Did you mean digits'),
    ({'learning_rate': 0.0}, 'learning_rate=0.0 must be above 0'),
    ({'alpha': float('nan')}, 'alpha=nan must be above 0'),
    ({'weight_decay': -1.0}, 'weight_decay=-1.0 must be at least 0'),
    ({'clients_per_round': 0}, 'clients_per_round=0 must be at least 1'),
    ({'seed': 2**32}, '--seed=4294967296 must be at most 4294967295'),
    (
      {'method': 'fed_avg', 'personalization': 'maml'},
      'maml, which is per_fed_avg. For tests .*--tested_personalization',
    ),
    (
      {'method': 'pfl_dyn', 'correction': 'scaf'},
      'pfl_dyn does not go with --correction=scaf .* is pfl_scaf',
    ),
    (
      {'method': 'fed_prox', 'personalization': 'proto'},
      'personalization=proto, which is none of the methods',
    ),
    (
      {'method': 'pfl_dyn', 'correction': 'a:B'},
      'pfl_dyn does not go with --correction=a:B',
    ),
    (
      {'method': 'per_fed_avg', 'alpha': 7.0},
      '--alpha=7.0 has no effect with --correction=none, only with'
      ' --correction=dyn. Leave it out.',
    ),
    (
      {'correction': 'a:B', 'alpha': 7.0},
      '--alpha=7.0 has no effect with --correction=a:B, only',
    ),
    (
      {'maml_steps': 3, 'personalization': 'proto'},
      '--maml_steps=3 has no effect with --personalization=proto, only with'
      ' --personalization=maml',
    ),
    (
      {'maml_first_order': False, 'personalization': 'proto'},
      '--maml_first_order=False has no effect',
    ),
    (
      {'tested_personalization': 'maml', 'personalization': 'proto'},
      'for methods that train without personalization, but here'
      ' --personalization=proto',
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


def test_resolve_fills_in_what_has_an_effect_and_is_not_given():
  resolved = settings_lib.Settings(
    personalization='proto', local_steps=7
  ).resolve()
  assert resolved.local_steps == 7
  assert (resolved.alpha, resolved.maml_steps) == (0.1, None)
  assert (resolved.classes_per_client, resolved.concentration) == (5, None)
  resolved = settings_lib.Settings(
    method='per_fed_avg', partition='dirichlet'
  ).resolve()
  assert (resolved.alpha, resolved.maml_steps) == (None, 1)
  assert (resolved.classes_per_client, resolved.concentration) == (None, 0.3)
  # What is given and turns out to have no effect is an error here.
  with pytest.raises(errors.UserError, match='--partition=alid'):
    settings_lib.Settings(concentration=0.5).resolve()


@pytest.mark.parametrize('method', methods.METHODS)
def test_a_correction_and_a_personalization_make_a_method(method):
  named = settings_lib.Settings(method=method)
  row = methods.METHODS[method]
  made = settings_lib.Settings(
    correction=row.correction,
    personalization='maml' if row.personalizes else 'none',
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
  'text',
  ['dynn', 'a:B(0.5)', 'a:B(gamma=x)', 'a:B(gamma=__import__("os").getcwd())']
  + ['a:B(', 'a:b.C', 'a:3', 'a:'],
)
def test_another_form_than_module_and_class_is_an_error(text):
  with pytest.raises(errors.UserError) as error:
    settings_lib.Settings(correction=text)
  said = str(error.value)
  assert f'--correction={text} must be one of none, dyn' in said
  assert 'MODULE:NAME(ARGUMENT=VALUE, ...)' in said
  assert ('Did you mean dyn?' in said) == (text == 'dynn')


def test_flags_give_the_settings_again():
  settings = settings_lib.Settings(
    correction='a:B(gamma=1)', max_grad_norm=math.inf, local_steps=3
  )
  given = dict(flag[2:].split('=', 1) for flag in settings.to_flags())
  values = {k: settings_lib.parse(k, text) for k, text in given.items()}
  assert settings_lib.Settings(**values) == settings


def test_a_setting_of_some_parts_is_that_of_a_field():
  names = {field.name for field in dataclasses.fields(settings_lib.Settings)}
  assert set(methods.ONLY_WITH) <= names
  assert methods.ONLY_WITH['mu'] == ('correction', ('prox',))


def test_parse_gives_the_type_of_the_setting():
  parse = settings_lib.parse
  assert parse('alpha', '1e-2') == 0.01
  assert parse('local_steps', '5') == 5
  assert parse('maml_first_order', 'True') is True
  assert parse('task', 'digits') == 'digits'


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('alpha', 'x', '--alpha=x must be of float'),
    ('local_steps', '1.5', '--local_steps=1.5 must be of int'),
    ('maml_first_order', 'si', '--maml_first_order=si must be of bool'),
  ],
)
def test_parse_says_what_is_wrong(name, text, message):
  with pytest.raises(errors.UserError, match=re.escape(message)):
    settings_lib.parse(name, text)
