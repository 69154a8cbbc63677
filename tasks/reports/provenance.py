"""Which version of the code made a result, and when."""

import datetime
import importlib.metadata
import os
import subprocess


def version() -> str:
  """The version of the package and, in a checkout, the commit."""
  number = f'tff_debias {importlib.metadata.version("tff_debias")}'
  try:
    # A commit followed by `-dirty` has changes that are not committed.
    result = subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=10', '--exclude=*'],
      cwd=os.path.dirname(__file__),
      capture_output=True,
      text=True,
    )
  except OSError:
    return number
  commit = result.stdout.strip()
  return f'{number}, commit {commit}' if commit else number


def today() -> str:
  """The date, as 2026-01-31."""
  return str(datetime.date.today())
