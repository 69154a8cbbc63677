"""Shows the progress of a program."""

import sys
from typing import Any

import tqdm

_SECONDS_BETWEEN_LINES = 30


def progress(total: int, unit: str, **options: Any) -> tqdm.tqdm:
  """A bar: redrawn at once in a terminal, every 30 seconds in a file."""
  is_terminal = sys.stderr.isatty()
  return tqdm.tqdm(
    total=total,
    unit=unit,
    dynamic_ncols=is_terminal,
    mininterval=0.1 if is_terminal else _SECONDS_BETWEEN_LINES,
    **options,
  )
