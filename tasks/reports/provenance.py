"""Which version of the code made a result, and when."""

import datetime
import os
import subprocess


def origin() -> dict[str, str]:
  """The commit of the checkout, `-dirty` if it was changed, and the date."""
  command = 'git describe --always --dirty --abbrev=10 --exclude="*"'
  done = subprocess.run(
    f'{command} 2>/dev/null || echo unknown',
    cwd=os.path.dirname(__file__),
    shell=True,
    capture_output=True,
    text=True,
  )
  return {
    'version': f'tff_debias, commit {done.stdout.strip()}',
    'date': str(datetime.date.today()),
  }
