import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

PROJECT = pathlib.Path(__file__).parents[2]
KERNEL = PROJECT / 'colab' / 'kernel.py'


class Result:
  def __init__(self, reply, messages):
    self.reply = reply['content']
    self.messages = [(m['msg_type'], m['content']) for m in messages]

  def contents(self, kind):
    return [content for k, content in self.messages if k == kind]

  @property
  def text(self):
    return ''.join(c['text'] for c in self.contents('stream'))

  @property
  def value(self):
    (content,) = self.contents('execute_result')
    return content['data']['text/plain']


class Notebook:
  """Runs cells as Colab does."""

  def __init__(self, manager, folder, first_cell):
    self.first_cell = first_cell
    self.manager = manager
    # With this variable ipykernel shows nothing that C code writes.
    env = {k: v for k, v in os.environ.items() if k != 'PYTEST_CURRENT_TEST'}
    manager.start_kernel(cwd=str(folder), env=env)
    self.client = manager.client()
    self.client.start_channels()
    self.client.wait_for_ready(timeout=60)

  def run(self, code, timeout=60):
    messages = []
    # After an error, Jupyter refuses cells that it already has; tests are fast.
    reply = self.client.execute_interactive(
      code,
      timeout=timeout,
      output_hook=messages.append,
      allow_stdin=False,
      stop_on_error=False,
    )
    return Result(reply, messages)

  def start(self, code='', timeout=60):
    cell = self.first_cell.replace("CODE = ''", f'CODE = {code!r}')
    result = self.run(cell, timeout)
    assert result.reply['status'] == 'ok', result.text + str(result.reply)
    return result

  def close(self):
    self.client.stop_channels()
    if self.manager.is_alive():
      self.manager.shutdown_kernel()


def wait_until(condition, seconds=10):
  end = time.time() + seconds
  while not condition():
    assert time.time() < end
    time.sleep(0.05)


@pytest.fixture(scope='module')
def open_notebook(outer, marked, first_cell):
  """Opens a notebook; then none of its processes is left."""

  @contextlib.contextmanager
  def open_(folder=KERNEL.parent, **env):
    # The environment of these tests has ipykernel and is there already.
    env = dict(TFF_DEBIAS_ENVIRONMENT=sys.prefix) | env
    manager_class, mark = outer.manager_class(**env)
    notebook = Notebook(manager_class(), folder, first_cell)
    notebook.mark = mark
    try:
      yield notebook
    finally:
      notebook.close()
    wait_until(lambda: not marked(mark))

  return open_


@pytest.fixture(scope='module')
def notebook(open_notebook):
  with open_notebook() as notebook:
    notebook.start()
    yield notebook


@pytest.mark.slow
def test_cells_run_in_the_other_python_without_colabs_settings(notebook):
  assert notebook.run('import sys; sys.version_info[:2]').value == '(3, 11)'
  outer = notebook.run('%%colab\nimport sys; sys.prefix').value
  assert notebook.run('sys.prefix').value == repr(sys.prefix) != outer
  # /etc/ipython names this class, which the inner kernel cannot import.
  own = notebook.run('%%colab\ntype(get_ipython().kernel).__module__').value
  assert own == "'google.colab._kernel'"
  inner = notebook.run('type(get_ipython().kernel).__module__').value
  assert inner == "'ipykernel.ipkernel'"
  names = 'UV_SYSTEM_PYTHON', 'PYTHONPATH', 'VIRTUAL_ENV', 'MPLBACKEND'
  values = notebook.run(
    f'import os; print(*map(os.environ.get, {names}), sep="|")'
  ).text.strip()
  assert values == (
    f'None|{PROJECT}|{sys.prefix}|module://matplotlib_inline.backend_inline'
  )


def test_cells_for_colab_have_the_same_files_but_not_the_variables(
  notebook, tmp_path
):
  notebook.run('x = 1')
  assert notebook.run('%%colab\nx').reply['ename'] == 'NameError'
  file = tmp_path / 'file'
  notebook.run(f'\n  %%colab\nopen({str(file)!r}, "w").write("hello")')
  assert notebook.run(f'open({str(file)!r}).read()').value == "'hello'"
  assert notebook.run('x').value == '1'


def test_output_of_python_c_and_other_programs_comes_once(notebook):
  result = notebook.run(
    'import os, subprocess, sys, time\n'
    'print("python"); print("error", file=sys.stderr)\n'
    'sys.stdout.flush()\n'
    'os.write(1, b"from c\\n"); subprocess.run(["echo", "program"])\n'
    '!echo shell\n'
    'time.sleep(0.5)'
  )
  lines = sorted(result.text.splitlines())
  assert lines == ['error', 'from c', 'program', 'python', 'shell']


def test_errors_have_tracebacks_and_the_kernel_goes_on(notebook):
  result = notebook.run('x = 2\ndef f():\n  return 1 / 0\nf()')
  assert result.reply['status'] == 'error'
  (error,) = result.contents('error')
  assert error['ename'] == result.reply['ename'] == 'ZeroDivisionError'
  traceback = re.sub('\x1b.*?m', '', '\n'.join(error['traceback']))
  assert 'return 1 / 0' in traceback
  assert 'ZeroDivisionError: division by zero' in traceback
  assert notebook.run('x').value == '2'
  assert notebook.run('x = (').reply['ename'] == 'SyntaxError'
  assert 'input' in notebook.run('input()').reply['evalue']


@pytest.mark.parametrize('colab', ['', '%%colab\n'])
def test_an_interrupt_ends_the_cell_only(notebook, colab):
  notebook.run('x = 3')
  timer = threading.Timer(1, notebook.manager.interrupt_kernel)
  timer.start()
  start = time.time()
  result = notebook.run(f'{colab}import time; time.sleep(30)')
  assert time.time() - start < 10
  assert result.reply['ename'] == 'KeyboardInterrupt'
  assert notebook.run('x').value == '3'


def test_completes_and_explains_variables(notebook):
  notebook.run('remarkable = [1]\ndef f(a):\n  """Explained."""')

  def ask(name, code):
    request = getattr(notebook.client, name)
    return request(code, len(code), reply=True, timeout=10)['content']

  assert ask('complete', 'remarka')['matches'] == ['remarkable']
  assert ask('complete', '%%colab\nremarka')['matches'] == []
  assert 'Explained.' in ask('inspect', 'f')['data']['text/plain']


def test_a_kernel_that_dies_is_an_error_and_is_started_anew(notebook):
  first = notebook.run('import os\nx = 5\nos.getpid()').value
  result = notebook.run('os.abort()')
  assert 'The kernel died' in result.reply['evalue']
  assert 'Fatal Python error: Aborted' in result.reply['evalue']
  assert len(result.contents('error')) == 1
  assert notebook.run('x').reply['ename'] == 'NameError'
  second = notebook.run('import os\nos.getpid()').value
  assert second != first
  os.kill(int(second), signal.SIGKILL)  # Between two cells.
  assert 'The kernel died' in notebook.run('1').reply['evalue']
  assert notebook.run('1').value == '1'


@pytest.mark.slow
def test_the_kernel_ends_with_the_notebooks(open_notebook, marked):
  with open_notebook() as notebook:

    def start():
      notebook.start()
      notebook.run('1')
      outer = notebook.manager.provisioner.pid
      (inner,) = [p for p in marked(notebook.mark) if p.pid != outer]
      return inner

    inner = start()
    notebook.manager.restart_kernel()
    wait_until(lambda: inner not in marked(notebook.mark))
    notebook.client.wait_for_ready(timeout=60)
    inner = start()
    # It waits in C and holds the GIL, so no thread of it sees the end.
    notebook.client.execute('import ctypes; ctypes.PyDLL(None).sleep(60)')
    time.sleep(1)
    notebook.manager.provisioner.process.kill()
    wait_until(lambda: inner not in marked(notebook.mark))


def test_where_tff_is_installed_cells_run_as_they_are(
  outer, tmp_path, first_cell
):
  """A local Jupyter."""
  manager = outer.manager_class()[0]()
  manager.kernel_spec.argv[0] = sys.executable
  manager.kernel_spec.env = {'IPYTHONDIR': str(tmp_path)}
  notebook = Notebook(manager, KERNEL.parent, first_cell)
  try:
    notebook.start()
    pid = notebook.run('import os; os.getpid()').value
    assert int(pid) == manager.provisioner.pid
    skipped = notebook.run('%%colab\nimport google.colab; 1 / 0')
    assert skipped.reply['status'] == 'ok'
    assert not skipped.contents('execute_result')
  finally:
    notebook.close()


def _checkout(folder):
  """A repository of these files, committed or not."""
  subprocess.run(
    ['sh', '-ec']
    + [
      'mkdir "$1"; git ls-files -z -co --exclude-standard colab tff_debias'
      ' pyproject.toml | xargs -0 cp --parents -t "$1"; cd "$1"; git init -q;'
      ' git add .; git -c user.name=a -c user.email=a commit -qm a'
    ]
    + ['sh', str(folder)],
    cwd=PROJECT,
    check=True,
  )
  return str(folder)


def _wheel(folder):
  subprocess.run(
    ['uv', 'build', '-q', '--wheel', '-o', str(folder)], cwd=PROJECT, check=True
  )
  return str(next(folder.glob('*.whl')))


@pytest.mark.slow
@pytest.mark.parametrize('make', [_checkout, _wheel])
def test_the_code_comes_from_an_address(open_notebook, tmp_path, make):
  code = make(tmp_path / 'tff_debias')
  folder = tmp_path / 'content'
  folder.mkdir()
  with open_notebook(folder) as notebook:
    notebook.start(code)
    notebook.run('import importlib.util as u')
    found = notebook.run('u.find_spec("tff_debias").origin').value
    assert found.startswith(repr(str(folder))[:-1])
    assert found.endswith("tff_debias/__init__.py'")
