import pytest

from tasks.runs import errors


@pytest.mark.parametrize(
  ('value', 'choices', 'hint'),
  [
    ('pfl_din', ['pfl_dyn', 'pfl_scaf'], 'pfl_dyn'),
    ('client_7', ['client_0001', 'client_0070', 'client_0007'], 'client_0007'),
    ('client_0', ['client_0010', 'client_0000'], 'client_0000'),
    ('lr', ['rounds', 'learning_rate_decay', 'learning_rate'], 'learning_rate'),
  ],
)
def test_the_nearest_choice_is_suggested(value, choices, hint):
  assert errors.did_you_mean(value, choices) == f' Did you mean {hint}?'


def test_nothing_is_suggested_that_is_not_alike():
  assert errors.did_you_mean('x', ['pfl_dyn', 'pfl_scaf']) == ''
