"""The error of a program that its user can mend, and parts of its words."""

from collections.abc import Iterable
import difflib


class UserError(ValueError):
  """A message to the user: what is wrong, and what would be right."""


def did_you_mean(
  value: str, choices: Iterable[str], form: str = '{}', others: Iterable = ()
) -> str:
  """A hint to the choice that is most like a wrong value, or ''.

  `form` is how the choice is written, with `{}` in its place; `others` are more
  hints, as they are to be written. The sentence has a space before it.
  """
  nearest = difflib.get_close_matches(value, list(choices), 1, 0.5)
  hints = [form.format(choice) for choice in nearest] + list(others)
  return f' Did you mean {" or ".join(hints[:3])}?' if hints else ''


def first_line(error: BaseException | str) -> str:
  """The first line of an error; TensorFlow's later lines are about its code.

  It has no period at its end. An error without a message gives its class.
  """
  line = str(error).strip().split('\n')[0].rstrip('.')
  return line or type(error).__name__


def last_line(output: str) -> str:
  """The last line of a program's output, in which it names its error."""
  return output.replace('\r', '\n').strip().split('\n')[-1]
