"""Runs a notebook's cells in Python 3.11, where its own Python has no TFF.

TensorFlow Federated needs Python 3.11; Colab's Python is newer. This program
makes a Python 3.11 environment of the versions in `requirements.txt`, or takes
the one in the folder TFF_DEBIAS_ENVIRONMENT. It starts a Jupyter kernel there,
and sends every later cell to it. A cell that begins with `%%colab` stays in
Colab's own kernel, which has `google.colab` and the same files, but not the
same variables. `input()` does not work.

Where TensorFlow Federated is installed, as in a local Jupyter, the cells run
where they are, and those that begin with `%%colab` are skipped.

The first cell of each notebook gets the code and runs this program:

    import glob, runpy
    CODE = ''  # The address of the repository or a wheel; none in a checkout.
    GPU = False  # Whether Colab also gets TensorFlow's CUDA.
    wheel = 'uv pip install -qt. -p3.11 --no-deps'
    get = wheel if CODE.endswith('.whl') else 'git clone -q'
    !test -e kernel.py || test -e */colab/kernel.py || {get} "{CODE}"
    runpy.run_path((glob.glob('*/colab/kernel.py') or ['kernel.py'])[0]);
"""

import asyncio
import fcntl
import functools
import importlib.util
import os
import pathlib
import queue
import signal
import subprocess
import tempfile
import traceback
from typing import Any

import IPython
import jupyter_client
from jupyter_client import kernelspec
import zmq

_FOLDER = pathlib.Path(__file__).resolve().parent
_ENVIRONMENT = pathlib.Path(
  os.environ.get('TFF_DEBIAS_ENVIRONMENT') or _FOLDER / '.venv'
)
# Colab's own settings, which are wrong for another Python.
_UNWANTED = 'MPLBACKEND', 'PYTHONHOME', 'UV_CONSTRAINT', 'UV_SYSTEM_PYTHON'
# The kernel dies with its parent, even while it holds the GIL. It reads no
# settings: /etc/ipython tells every kernel to be Colab's, which is not there.
_LAUNCHER = """
import ctypes, faulthandler, os, signal, sys, warnings
faulthandler.enable(os.dup(2))  # Before the kernel replaces it.
if sys.platform == 'linux':
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
  if os.getppid() != int(os.environ['JPY_PARENT_PID']):
    sys.exit('The notebook ended before its kernel started.')
from ipykernel import kernelapp
warnings.filterwarnings('ignore', 'IProgress not found')  # From tqdm.auto.
kernelapp.IPKernelApp.load_config_file = lambda *args, **kwargs: None
kernelapp.launch_new_instance()
"""


def _environ() -> dict[str, str]:
  """Returns the variables with which programs run in the environment."""
  # A checkout's folder, or the folder in which a wheel was unpacked.
  code = next(p for p in _FOLDER.parents if (p / 'tff_debias').is_dir())
  return {k: v for k, v in os.environ.items() if k not in _UNWANTED} | dict(
    PATH=f'{_ENVIRONMENT}/bin:{os.environ["PATH"]}',
    PYTHONPATH=str(code),
    VIRTUAL_ENV=str(_ENVIRONMENT),
  )


def _install(gpu: bool) -> None:
  """Makes the environment, or completes it; with CUDA for a GPU."""
  if not _ENVIRONMENT.exists():
    print('Installing Python 3.11 and TensorFlow Federated: some minutes.')
  requirements = _FOLDER / 'requirements.txt'
  command = f"""
    command -v uv >/dev/null || python3 -m pip install -q uv
    test -e '{_ENVIRONMENT}/bin/python' || uv venv -q -p3.11 '{_ENVIRONMENT}'
    uv pip install -q --no-deps -r '{requirements}'"""
  if gpu:  # TensorFlow's own CUDA; its tensorrt has no wheel for Python 3.11.
    command += f"""
    echo "tensorrt ; sys_platform == 'never'" | uv pip install -q \\
      --override /dev/stdin -c '{requirements}' 'tensorflow[and-cuda]'"""
  with open(requirements) as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # Another notebook may do the same.
    done = subprocess.run(
      ['sh', '-ec', command], env=_environ(), capture_output=True, text=True
    )
  if done.returncode:
    raise RuntimeError(f'No environment could be made:\n{done.stderr}')


class _KernelManager(jupyter_client.AsyncKernelManager):
  """Manages a kernel in the environment."""

  kernel_spec = kernelspec.KernelSpec(
    # Jedi may take many seconds to complete names of TensorFlow's.
    argv=[f'{_ENVIRONMENT}/bin/python', '-c', _LAUNCHER]
    + ['-f', '{connection_file}', '--IPCompleter.use_jedi=False']
  )


class _Cells:
  """Replaces methods of the notebook's kernel, to run cells in ours."""

  def __init__(self, kernel: Any):
    self._kernel = kernel
    self._manager = None
    self._own_do_execute = kernel.do_execute
    kernel.do_execute = self.do_execute
    for name in 'complete', 'inspect':
      own = getattr(kernel, f'do_{name}')
      setattr(kernel, f'do_{name}', functools.partial(self._ask, name, own))

  async def do_execute(
    self, code: str, silent: bool, store_history: bool = True, *args, **kwargs
  ) -> dict[str, Any]:
    """Runs a cell in our kernel. Colab's silent requests stay in its own."""
    if silent or not store_history or _stays(code):
      code = code.lstrip().removeprefix('%%colab') if _stays(code) else code
      args = code, silent, store_history, *args
      return await self._own_do_execute(*args, **kwargs)
    shell = self._kernel.shell
    count = shell.execution_count
    # Colab's history needs the source as it was typed.
    shell.history_manager.store_inputs(count, code, code)
    shell.execution_count += 1
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, self._interrupt, loop)
    try:
      return await self._run(code, count)
    except Exception as e:
      if self._manager is not None:
        await self._manager.shutdown_kernel(now=True)
        self._manager = None
      error = dict(ename=type(e).__name__, evalue=str(e))
      error['traceback'] = traceback.format_exception_only(e)
      self._kernel.send_response(self._kernel.iopub_socket, 'error', error)
      return dict(status='error', execution_count=count, **error)
    finally:
      loop.remove_signal_handler(signal.SIGINT)

  def _interrupt(self, loop: asyncio.AbstractEventLoop) -> None:
    if self._manager is not None:
      loop.create_task(self._manager.interrupt_kernel())

  def _ask(self, name: str, own: Any, code: str, *args) -> dict[str, Any]:
    """Completes or explains names of our kernel's, if that answers soon."""
    if self._manager is not None and not _stays(code):
      # Not by the asynchronous client: Colab's kernel does not await this.
      with zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f'tcp://{self._manager.ip}:{self._manager.shell_port}')
        names = ('cursor_pos', 'detail_level')
        content = dict(zip(names, args, strict=False), code=code)
        session = self._manager.session
        session.send(socket, f'{name}_request', content)
        if socket.poll(timeout=1000):  # Milliseconds.
          return session.recv(socket)[1]['content']
    return own(code, *args)

  async def _run(self, code: str, count: int) -> dict[str, Any]:
    """Shows what a cell shows, and returns its reply."""
    if self._manager is None:
      await self._start()
    self._client.execute(f'get_ipython().execution_count={count}', silent=True)
    request = self._client.execute(code, allow_stdin=False, stop_on_error=False)
    while True:
      try:
        message = await self._client.get_iopub_msg(timeout=0.5)
      except queue.Empty:
        if await self._manager.is_alive():
          continue
        self._log.seek(0)
        log = self._log.read().decode(errors='replace')
        start = log.rfind('Fatal Python error')
        words = log[start:] if start >= 0 else log[-2000:]
        raise RuntimeError(
          'The kernel died, and its variables with it. The next cell starts'
          f' another. Its last words:\n{words[:2000]}'
        ) from None
      kind, content = message['msg_type'], message['content']
      if kind not in ('status', 'execute_input', 'iopub_welcome'):
        self._kernel.send_response(self._kernel.iopub_socket, kind, content)
      elif content.get('execution_state') == 'idle':
        if message['parent_header']['msg_id'] == request:
          break
    while True:
      reply = await self._client.get_shell_msg(timeout=10)
      if reply['parent_header']['msg_id'] == request:
        return reply['content']

  async def _start(self) -> None:
    # Its output goes not to this process's, of which the notebook shows a
    # copy: what C code writes would come twice.
    self._log = tempfile.TemporaryFile()
    self._manager = _KernelManager()
    await self._manager.start_kernel(
      env=_environ(), stdout=self._log, stderr=self._log
    )
    self._client = self._manager.client()
    self._client.start_channels(stdin=False, hb=False, control=False)
    await self._client.wait_for_ready(timeout=120)


def _stays(code: str) -> bool:
  return code.split(maxsplit=1)[:1] == ['%%colab']


_shell = IPython.get_ipython()
if importlib.util.find_spec('tensorflow_federated'):
  _shell.register_magic_function(lambda *args: None, 'cell', 'colab')
else:
  if not os.environ.get('TFF_DEBIAS_ENVIRONMENT'):
    _install(_shell.user_ns.get('GPU', False))
  _Cells(_shell.kernel)
