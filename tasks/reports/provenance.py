"""Which version of the code made a result, and when."""

import datetime
import os
import subprocess


def version() -> str:
  """The commit of the checkout; `-dirty` marks changes after it."""
  command = 'git describe --always --dirty --abbrev=10 --exclude="*"'
  done = subprocess.run(
    f'{command} 2>/dev/null || echo unknown',
    cwd=os.path.dirname(__file__),
    shell=True,
    capture_output=True,
    text=True,
  )
  return f'tff_debias, commit {done.stdout.strip()}'


def today() -> str:
  """The date, as 2026-01-31."""
  return str(datetime.date.today())
