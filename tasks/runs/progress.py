"""How a program shows its progress: a bar in a terminal, lines in a file."""

import sys
from typing import Any
from typing import TextIO

import tqdm

_SECONDS_BETWEEN_LINES = 30
_LINE = '{desc}{n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}{postfix}]'


def progress(total: int, unit: str, **options: Any) -> tqdm.tqdm:
  """A bar in a terminal, and a line every 30 seconds in a file."""
  if sys.stderr.isatty():
    return tqdm.tqdm(total=total, unit=unit, dynamic_ncols=True, **options)
  return _Lines(
    total=total,
    unit=unit,
    file=_LineByLine(sys.stderr),
    mininterval=_SECONDS_BETWEEN_LINES,
    miniters=1,
    bar_format=_LINE,
    **options,
  )


class _Lines(tqdm.tqdm):
  """A bar that a new remark alone does not draw anew."""

  def set_postfix_str(self, s: str = '', refresh: bool = True) -> None:
    """See base class."""
    super().set_postfix_str(s, refresh=False)


class _LineByLine:
  """Writes each state of a bar as a line of its own."""

  def __init__(self, file: TextIO):
    self._file = file

  def write(self, text: str) -> None:
    """Writes a line; tqdm clears the last one with blanks before."""
    if text.strip():
      self._file.write(text.strip() + '\n')

  def flush(self) -> None:
    """Writes at once."""
    self._file.flush()
