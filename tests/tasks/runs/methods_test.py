import os
import sys

import pytest

from tasks.runs import errors
from tasks.runs import methods
from tasks.runs import settings as settings_lib
import tff_debias

_MODULE = """
import dataclasses
import tff_debias

@dataclasses.dataclass(frozen=True)
class Mine(tff_debias.Correction):
  gamma: float = 1.0

  def __post_init__(self):
    if self.gamma < 0:
      raise ValueError('gamma is negative')

  def gradient_term(self, *unused):
    return None

class Abstract(tff_debias.Correction):
  pass

class Other:
  pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  """The name of a module with corrections, in a folder on the path."""
  name = f'corrections_{os.path.basename(tmp_path)}'
  (tmp_path / f'{name}.py').write_text(_MODULE)
  (tmp_path / f'{name}_broken.py').write_text('import no_such_module\n')
  monkeypatch.syspath_prepend(tmp_path)
  yield name
  sys.modules.pop(name, None)


def build(text):
  settings = settings_lib.resolve(correction=text)
  return methods.build('correction', settings)


def test_makes_ones_own(module):
  made = build(f'{module}:Mine(gamma=0.5)')
  assert isinstance(made, sys.modules[module].Mine)
  assert made.gamma == 0.5
  assert build(f'{module}:Mine').gamma == 1
  assert build('tff_debias:Dyn(alpha=0.2)') == tff_debias.Dyn(0.2)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('no_such:Mine', "No module named 'no_such'.* PYTHONPATH"),
    ('{}_broken:Mine', "cannot be made: .*No module named 'no_such_module'"),
    ('{}:Mime', r'Did you mean Mine\?'),
    ('{}:Other', 'Other is not a tff_debias.Correction'),
    ('{}:Mine(gama=1)', "unexpected keyword argument 'gama'"),
    ('tff_debias:Dyn', "missing 1 required positional argument: 'alpha'"),
    ('{}:Mine(gamma=-1)', 'cannot be made: ValueError: gamma is negative'),
    ('{}:Abstract', "Can't instantiate abstract"),
  ],
)
def test_says_why_it_cannot_make_it(module, text, message):
  with pytest.raises(errors.UserError, match=message):
    build(text.format(module))


def test_built_in_ones_take_their_settings():
  settings = settings_lib.resolve(
    alpha=0.3,
    personalization='maml',
    maml_steps=2,
    maml_learning_rate=0.5,
    maml_first_order=True,
  )
  assert methods.build('correction', settings) == tff_debias.Dyn(0.3)
  prox = settings_lib.resolve(method='fed_prox', mu=0.2)
  assert methods.build('correction', prox) == tff_debias.Prox(0.2)
  personalization = methods.build('personalization', settings)
  assert personalization == tff_debias.Maml(2, 0.5, True)
