"""The error of a program that its user can mend, and parts of its words."""

from collections.abc import Iterable
import difflib


class UserError(ValueError):
  """A message to the user: what is wrong, and what would be right."""


def did_you_mean(value: str, choices: Iterable[str]) -> str:
  """A hint, after a space, to the choice most like a wrong value; or ''."""
  nearest = difflib.get_close_matches(value, list(choices), 1, 0.5)
  return f' Did you mean {nearest[0]}?' if nearest else ''


def first_line(error: BaseException | str) -> str:
  """The first line of an error without its period, or the error's class.

  TensorFlow's later lines are about its own code.
  """
  line = str(error).strip().split('\n')[0].rstrip('.')
  return line or type(error).__name__
