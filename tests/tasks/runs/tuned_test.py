import math

import pytest

from tasks.runs import errors
from tasks.runs import settings as settings_lib
from tasks.runs import tuned as tuned_lib

_TUNED = tuned_lib.Tuned(
  'digits',
  'alid',
  {
    'pfl_dyn/maml': {'alpha': 0.3, 'max_grad_norm': math.inf},
    'fed_avg/proto': {},
  },
  {'seeds': '7'},
)


def test_what_is_written_is_read_and_goes_behind_what_is_given(tmp_path):
  path = str(tmp_path / 'tuned.json')
  _TUNED.save(path)
  tuned = tuned_lib.load(path)
  assert tuned == _TUNED
  settings = tuned.apply(settings_lib.Settings(personalization='maml'))
  assert (settings.alpha, settings.max_grad_norm) == (0.3, math.inf)
  assert settings.partition == 'alid'
  given = settings_lib.Settings(personalization='maml', alpha=0.5)
  assert tuned.apply(given).alpha == 0.5
  plain = settings_lib.Settings(
    method='fed_avg', tested_personalization='proto', partition='alid'
  )
  assert tuned.apply(plain) == plain


def test_a_correction_of_ones_own_has_a_key():
  settings = settings_lib.Settings(correction='a:B(gamma=1)')
  assert tuned_lib.key(settings) == 'B(gamma=1)/proto'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'task': 'cifar10'}, 'is for --task=digits, not cifar10'),
    ({'partition': 'acid'}, 'is for --partition=alid, not acid'),
    ({}, 'has no pfl_dyn/proto, only pfl_dyn/maml, fed_avg/proto'),
  ],
)
def test_a_choice_for_something_else_is_refused(options, message):
  with pytest.raises(errors.UserError, match=message):
    _TUNED.apply(settings_lib.Settings(**options))


@pytest.mark.parametrize('content', ['', '[]', '{"task": 1}', '{"a'])
def test_another_file_is_refused(tmp_path, content):
  path = tmp_path / 'tuned.json'
  path.write_text(content)
  with pytest.raises(errors.UserError, match='no file of tasks.tune'):
    tuned_lib.load(str(path))
  with pytest.raises(errors.UserError, match='There is no file --tuned='):
    tuned_lib.load(str(tmp_path / 'other'))
