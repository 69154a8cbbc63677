import json
import math

import pytest

from tasks.runs import errors
from tasks.runs import settings as settings_lib
from tasks.runs import tuned


@pytest.fixture
def path(tmp_path):
  """A file as that of tasks.tune."""
  chosen = {
    'pfl_dyn/maml': {'alpha': 0.3, 'max_grad_norm': math.inf},
    'fed_avg/proto': {},
  }
  content = {'task': 'digits', 'partition': 'alid', 'chosen': chosen}
  (tmp_path / 'tuned.json').write_text(json.dumps(content))
  return str(tmp_path / 'tuned.json')


def test_the_choice_goes_behind_what_is_given(path):
  plain = settings_lib.Settings(personalization='maml')
  assert tuned.apply(None, plain) == plain
  settings = tuned.apply(path, plain)
  assert (settings.alpha, settings.max_grad_norm) == (0.3, math.inf)
  assert settings.partition == 'alid'
  given = settings_lib.Settings(personalization='maml', alpha=0.5)
  assert tuned.apply(path, given).alpha == 0.5


def test_a_correction_of_ones_own_has_a_key():
  settings = settings_lib.Settings(correction='a:B(gamma=1)')
  assert tuned.key(settings) == 'B(gamma=1)/maml'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'task': 'cifar10'}, 'is for --task=digits, not cifar10'),
    ({'partition': 'acid'}, 'is for --partition=alid, not acid'),
    ({}, 'has no pfl_dyn/proto, only pfl_dyn/maml, fed_avg/proto'),
  ],
)
def test_a_choice_for_something_else_is_refused(path, options, message):
  with pytest.raises(errors.UserError, match=message):
    tuned.apply(path, settings_lib.Settings(personalization='proto', **options))


@pytest.mark.parametrize('content', [None, '[]', '{"task": 1}', '{"a'])
def test_another_file_is_refused(tmp_path, content):
  path = tmp_path / 'tuned.json'
  if content is not None:
    path.write_text(content)
  with pytest.raises(errors.UserError, match='must be a file tuned.json of'):
    tuned.apply(str(path), settings_lib.Settings())
