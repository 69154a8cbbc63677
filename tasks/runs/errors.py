"""Words the parts of error messages that several modules need."""

from collections.abc import Iterable
import difflib


def did_you_mean(
  value: str, choices: Iterable[str], form: str = '{}', others: Iterable = ()
) -> str:
  """A hint to the choice that is most like a wrong value.

  Args:
    value: The wrong value.
    choices: The right ones.
    form: How the choice is written, with `{}` in its place.
    others: More hints, as they are to be written.

  Returns:
    A sentence with a space before it, or '' if there is no hint.
  """
  nearest = difflib.get_close_matches(value, list(choices), 1, 0.5)
  hints = [form.format(choice) for choice in nearest] + list(others)
  return f' Did you mean {" or ".join(hints[:3])}?' if hints else ''


def first_line(error: BaseException | str) -> str:
  """The first line of an error; TensorFlow's later lines are about its code.

  Args:
    error: The error, or its message.

  Returns:
    The line without the period at its end, or the name of the error's class if
    it has no message.
  """
  line = str(error).strip().split('\n')[0].rstrip('.')
  return line or type(error).__name__


def last_line(output: str) -> str:
  """The last line of a program's output, in which it names its error."""
  return output.replace('\r', '\n').strip().split('\n')[-1]
