"""Says why a computation failed, in the words of its caller."""

import re

# TensorFlow's words for a label that is no class, or for an index.
_WRONG_LABEL = re.compile(
  r'(?:label value of|indices(?:\[[\d,]+\])? =) (-?\d+) .*\[0, (\d+)\)'
)
_ASSERTION = 'assertion failed: '


class ComputationError(RuntimeError):
  """A computation failed while it ran: who failed, and why."""


def reason(message: str) -> str:
  """A message of TensorFlow without the names of nodes in its graph."""
  message = re.sub(r'\{\{[^}]*\}\} ', '', message)
  message = re.split(r'\n\t \[\[|\n\n|\n?\[\[\{\{| \[Op:', message)[0].strip()
  if message.startswith(_ASSERTION):
    message = message.removeprefix(_ASSERTION).strip('[]').replace('] [', ' ')
  if wrong := _WRONG_LABEL.search(message):
    return (
      'A label (or the index of an embedding) must be from 0 to'
      f' {int(wrong[2]) - 1}, got {wrong[1]}.'
    )
  return message
