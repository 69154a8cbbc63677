import pytest

from tasks.runs import errors


def test_the_nearest_choice_is_suggested():
  choices = ['pfl_dyn', 'pfl_scaf']
  assert errors.did_you_mean('pfl_din', choices) == ' Did you mean pfl_dyn?'
  assert errors.did_you_mean('x', choices) == ''


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
