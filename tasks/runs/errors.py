"""The errors of a program that its user can mend, and a hint to the right."""

from collections.abc import Collection
import difflib
import re


class UserError(ValueError):
  """A message to the user: what is wrong, and what would be right."""


def did_you_mean(value: str, choices: Collection[str]) -> str:
  """A hint, after a space, to the choice most like a wrong value; or ''.

  A number is the same with zeros before it, and letters may be the initials of
  words: client_7 is client_0007, and lr is learning_rate.
  """

  def plain(text: str) -> str:
    return re.sub(r'0*(\d+)', r'\1', text)

  def initials(text: str) -> str:
    return ''.join(word[0] for word in text.split('_') if word)

  alike = [c for c in choices if value in (initials(c), plain(c))]
  alike += [c for c in choices if plain(c) == plain(value)]
  alike += difflib.get_close_matches(value, choices, 1, 0.5)
  return f' Did you mean {alike[0]}?' if alike else ''
