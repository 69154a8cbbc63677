import os
import pathlib
import re
import subprocess
import sys
import textwrap
import uuid
import warnings

import jupyter_client
from jupyter_client import kernelspec
import psutil
import pytest

KERNEL = pathlib.Path(__file__).parents[2] / 'colab' / 'kernel.py'
# Colab's own, of November 2026.
PINS = [
  'ipykernel==6.17.1',
  'ipython==7.34.0',
  'jupyter_client==7.4.9',
  'tornado>=6.5,<6.6',
]
# What Colab's kernel class does otherwise than IPython's, as far as it matters
# here: it does not await completions, and its history needs raw sources.
COLAB_KERNEL = """
from IPython.core import history
from ipykernel import ipkernel, jsonutil, zmqshell

class History(history.HistoryManager):
  def store_inputs(self, line_num, source, source_raw=None):
    super().store_inputs(line_num, source, source_raw=source_raw.strip())

class Shell(zmqshell.ZMQInteractiveShell):
  def init_history(self):
    self.history_manager = History(shell=self, parent=self)
    self.configurables.append(self.history_manager)

class Kernel(ipkernel.IPythonKernel):
  def _shell_class_default(self):
    return Shell

  def complete_request(self, stream, ident, parent):
    content = parent['content']
    matches = self.do_complete(content['code'], content['cursor_pos'])
    matches = jsonutil.json_clean(matches)
    self.session.send(stream, 'complete_reply', matches, parent, ident)
"""


def _find_python():
  found = subprocess.run(
    ['uv', 'python', 'find', '3.13', '--no-python-downloads'],
    capture_output=True,
    text=True,
  )
  if not found.returncode:
    return found.stdout.strip()
  versions = pathlib.Path(os.environ.get('PYENV_ROOT') or '~/.pyenv')
  pythons = versions.expanduser().glob('versions/3.13.*/bin/python')
  return next(map(str, pythons), None)


class Outer:
  """A Python environment as Colab's is, without TensorFlow Federated."""

  def __init__(self, folder):
    self.folder = folder
    python = _find_python()
    if python is None:
      warnings.warn(
        f'No Python 3.13 here: {sys.version} stands for it.', stacklevel=1
      )
    env = folder / 'outer'
    self.python = env / 'bin' / 'python'
    for command in (
      ['uv', 'venv', '-q', '--python', python or sys.executable, env],
      ['uv', 'pip', 'install', '-q', '--python', self.python, *PINS],
    ):
      subprocess.run(command, check=True)
    # As the file in /etc/ipython, which is read in the same way.
    settings = folder / 'ipython' / 'profile_default' / 'ipython_config.py'
    settings.parent.mkdir(parents=True)
    settings.write_text(
      "c.IPKernelApp.kernel_class = 'google.colab._kernel.Kernel'\n"
    )
    module = folder / 'env' / 'google' / 'colab' / '_kernel.py'
    module.parent.mkdir(parents=True)
    module.write_text(COLAB_KERNEL)
    (module.parent / 'files.py').write_text(
      'def download(path):\n  open(path).close()  # It must be there.\n'
    )
    (folder / 'env' / 'colab_backend.py').write_text(
      'from matplotlib.backends.backend_agg import *\n'
    )

  def manager_class(self, base=jupyter_client.KernelManager, **env):
    """Returns a manager of kernels in it, and a mark of their processes."""
    mark = uuid.uuid4().hex
    spec = kernelspec.KernelSpec(
      argv=[str(self.python), '-m', 'ipykernel', '-f', '{connection_file}'],
      env=dict(
        IPYTHONDIR=str(self.folder / 'ipython'),
        MPLBACKEND='module://colab_backend',
        PYTHONPATH=str(self.folder / 'env'),
        UV_SYSTEM_PYTHON='true',
        MARK=mark,
        **env,
      ),
    )
    return type('Manager', (base,), {'kernel_spec': spec}), mark


def _marked(mark):
  found = []
  for process in psutil.process_iter():
    try:
      if process.environ().get('MARK') == mark:
        found.append(process)
    except psutil.Error:
      pass
  return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope='session')
def first_cell():
  """The first cell of notebooks, as kernel.py's docstring has it."""
  docstring = re.search(r'"""(.*?)"""', KERNEL.read_text(), re.S)[1]
  cell = textwrap.dedent(docstring[docstring.index('    import glob') :])
  assert len(cell.splitlines()) <= 7
  return cell.strip()


@pytest.fixture(scope='session')
def marked():
  """Returns a function that finds all processes of a kernel, also orphans."""
  return _marked


@pytest.fixture(scope='session')
def outer(tmp_path_factory):
  return Outer(tmp_path_factory.mktemp('colab'))
