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
  # A commit followed by `-dirty` has changes that are not committed.
  command = 'git describe --always --dirty --abbrev=10 --exclude=*'
  try:
    commit = subprocess.check_output(
      command.split(), cwd=os.path.dirname(__file__), stderr=subprocess.DEVNULL
    )
  except (OSError, subprocess.CalledProcessError):
    return number
  return f'{number}, commit {commit.decode().strip()}'


def today() -> str:
  """The date, as 2026-01-31."""
  return str(datetime.date.today())
