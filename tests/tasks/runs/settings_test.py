import json
import math

import pytest

from tasks.runs import errors
from tasks.runs import methods
from tasks.runs import settings as settings_lib


def test_defaults_are_pfl_dyn_on_digits_and_the_tasks_personalization():
  settings = settings_lib.resolve()
  assert (settings.task, settings.correction) == ('digits', 'dyn')
  assert settings.personalization == 'maml'
  assert settings_lib.resolve(task='cifar10').personalization == 'proto'
  assert settings_lib.resolve(method='scaffold').personalization == 'none'


def test_resolve_fills_in_what_has_an_effect_and_is_not_given():
  resolved = settings_lib.resolve(personalization='proto', local_steps=7)
  assert resolved.local_steps == 7
  assert (resolved.alpha, resolved.maml_steps) == (0.1, None)
  assert (resolved.classes_per_client, resolved.concentration) == (5, None)
  resolved = settings_lib.resolve(method='per_fed_avg', partition='dirichlet')
  assert (resolved.alpha, resolved.maml_steps) == (None, 1)
  assert (resolved.classes_per_client, resolved.concentration) == (None, 0.3)


@pytest.mark.parametrize('method', methods.METHODS)
def test_a_correction_and_a_personalization_make_a_method(method):
  named = settings_lib.resolve(method=method)
  row = methods.METHODS[method]
  made = settings_lib.resolve(
    correction=row.correction,
    personalization='maml' if row.personalizes else 'none',
  )
  assert made == named
  assert made.method_names == (method, made.personalization)


def test_the_tests_personalization_decides_what_has_an_effect():
  given = {'method': 'fed_avg', 'maml_steps': 3}
  settings = settings_lib.resolve(**given, tested_personalization='maml')
  assert settings.method_names == ('fed_avg', 'maml')
  with pytest.raises(errors.UserError, match='--maml_steps=3 has no effect'):
    settings_lib.resolve(**given, tested_personalization='proto')


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
  settings = settings_lib.resolve(**options, seed=3)
  expected = settings_lib.resolve(
    method=method, personalization=settings.personalization, seed=3
  )
  assert settings.uncorrected() == expected


def test_ones_own_correction_is_written_in_one_way():
  settings = settings_lib.resolve(
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
    settings_lib.resolve(correction=text)
  said = str(error.value)
  assert f'--correction={text} must be one of none, dyn' in said
  assert 'MODULE:NAME(ARGUMENT=VALUE, ...)' in said
  assert ('Did you mean dyn?' in said) == (text == 'dynn')


def test_flags_give_the_settings_again():
  settings = settings_lib.resolve(
    correction='a:B(gamma=1)', max_grad_norm=math.inf, local_steps=3
  )
  given = dict(flag[2:].split('=', 1) for flag in settings.to_flags())
  values = {k: settings_lib.FLAGS[k].read(text) for k, text in given.items()}
  assert settings_lib.resolve(**values) == settings


@pytest.fixture
def tuned(tmp_path):
  """A file as that of tasks.tune."""
  chosen = {
    'pfl_dyn/maml': {'alpha': 0.3, 'max_grad_norm': math.inf},
    'fed_avg/proto': {},
  }
  content = {'task': 'digits', 'partition': 'alid', 'chosen': chosen}
  (tmp_path / 'tuned.json').write_text(json.dumps(content))
  return str(tmp_path / 'tuned.json')


def test_what_was_tuned_goes_behind_what_is_given(tuned):
  given = {'personalization': 'maml', 'alpha': 0.5}
  assert settings_lib.with_tuned(None, given) == given
  found = settings_lib.with_tuned(tuned, given)
  assert (found['alpha'], found['max_grad_norm']) == (0.5, math.inf)
  assert (found['task'], found['partition']) == ('digits', 'alid')
  del given['alpha']
  assert settings_lib.with_tuned(tuned, given)['alpha'] == 0.3


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'task': 'cifar10'}, 'is for --task=digits, not cifar10'),
    ({'partition': 'acid'}, 'is for --partition=alid, not acid'),
    ({}, 'has no pfl_dyn/proto, only pfl_dyn/maml, fed_avg/proto'),
    ({'correction': 'a:B(gamma=1)'}, r'has no B\(gamma=1\)/proto, only'),
  ],
)
def test_what_was_tuned_for_something_else_is_refused(tuned, options, message):
  with pytest.raises(errors.UserError, match=message):
    settings_lib.with_tuned(tuned, {'personalization': 'proto', **options})


@pytest.mark.parametrize('content', [None, '[]', '{"task": 1}', '{"a'])
def test_another_file_is_not_what_was_tuned(tmp_path, content):
  path = tmp_path / 'tuned.json'
  if content is not None:
    path.write_text(content)
  with pytest.raises(errors.UserError, match='must be a file tuned.json of'):
    settings_lib.with_tuned(str(path), {})
