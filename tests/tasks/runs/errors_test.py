import pytest

from tasks.runs import errors

CHOICES = ['pfl_dyn', 'pfl_scaf']


def test_the_nearest_choice_is_suggested():
  assert errors.did_you_mean('pfl_din', CHOICES) == ' Did you mean pfl_dyn?'
  assert errors.did_you_mean('x', CHOICES) == ''
  assert errors.did_you_mean('', []) == ''


def test_a_suggestion_has_its_form_and_further_ones_beside_it():
  hint = errors.did_you_mean('pfl_din', CHOICES, 'runs/{}', ['a', 'b', 'c'])
  assert hint == ' Did you mean runs/pfl_dyn or a or b?'


@pytest.mark.parametrize(
  ('error', 'line'),
  [
    ('One. Two.\nThree', 'One. Two'),
    (ValueError('\n  it is wrong.\n\nmore'), 'it is wrong'),
    (KeyError(), 'KeyError'),
  ],
)
def test_the_first_line_of_an_error(error, line):
  assert errors.first_line(error) == line


@pytest.mark.parametrize(
  ('output', 'line'),
  [('', ''), ('a\nb\n\n', 'b'), ('1 %\r2 %\rError: x\n', 'Error: x')],
)
def test_the_last_line_of_an_output(output, line):
  assert errors.last_line(output) == line
