import pytest

from tff_debias import checks


@pytest.mark.parametrize(
  ('error', 'line'),
  [
    (ValueError('It is wrong.'), 'It is wrong'),
    (ValueError('\n  It is wrong.\n\nSo says line 3.'), 'It is wrong'),
    (ValueError(), 'ValueError'),
    (NotImplementedError(' \n'), 'NotImplementedError'),
  ],
)
def test_the_first_line_of_an_error(error, line):
  assert checks.first_line(error) == line
