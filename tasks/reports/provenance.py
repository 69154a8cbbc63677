"""Which version of the code made a result, and when."""

import datetime
import os
import pathlib
import subprocess
import tomllib

_PROJECT = pathlib.Path(__file__).parents[2] / 'pyproject.toml'


def version() -> str:
  """The version of the package and, in a checkout, the commit."""
  # In Colab the package is not installed: Python finds it in the checkout.
  project = tomllib.loads(_PROJECT.read_text())['project']
  number = f'{project["name"]} {project["version"]}'
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
