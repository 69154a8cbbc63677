"""Starts TFF's worker, which ends with this process and is private to it."""

from collections.abc import Sequence
import concurrent.futures
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any
from typing import BinaryIO

from absl import logging
import tensorflow_federated as tff

from tff_debias.runtime import executor

READY_WITHIN_SECONDS = 60

_BINARY = os.path.join(os.path.dirname(tff.__file__), 'data', 'worker_binary')
_LAUNCHER = os.path.join(os.path.dirname(__file__), 'launcher.py')
_NETWORKS = ('private', 'shared')
# Any will do: nobody else is in the namespace.
_PRIVATE_PORT = 8000


class WorkerError(RuntimeError):
  """A worker does not start or does not live, and its last output."""


class Worker:
  """A worker process on this machine, gone when this process is.

  A worker has no authentication and runs any graph that it is sent: whoever
  reaches it can read your files and run code as you. It cannot be told to
  listen on one address only. Therefore it gets a network of its own, and a unix
  socket in a folder of which only you have the permissions. It then cannot
  reach the network either, for example a file system like `gs://`.

  Attributes:
    address: Where it listens, `unix:/PATH` or `localhost:PORT`.
    stub: TFF's connection to it.
  """

  def __init__(
    self,
    max_concurrency: int | None = None,
    log_file: str | os.PathLike[str] | None = None,
    worker_network: str = 'private',
  ):
    """Starts the worker and waits until it is ready, about 0.1 seconds.

    Args:
      max_concurrency: The number of clients that it simulates at a time. By
        default the number of cores.
      log_file: The file to which its output is appended; by default a temporary
        one.
      worker_network: `private`, as described above; where the system does not
        permit it, a warning says so and the worker's network is shared. Or
        `shared`: the worker listens on all interfaces of this machine.

    Raises:
      ValueError: If `worker_network` is neither.
      WorkerError: If the worker cannot be started.
    """
    if worker_network not in _NETWORKS:
      raise ValueError(
        f"worker_network must be 'private' or 'shared', got {worker_network!r}."
      )
    command = [
      _BINARY,
      f'--max_concurrent_computation_calls={max_concurrency or os.cpu_count()}',
    ]
    with contextlib.ExitStack() as resources:
      self._log = resources.enter_context(
        open(log_file, 'ab+') if log_file else tempfile.TemporaryFile()
      )
      self._log_start = self._log.seek(0, os.SEEK_END)
      start = _start_private if worker_network == 'private' else _start_shared
      try:
        self._process, self.address = start(command, self._log, resources)
      except _NotPermittedError as e:
        logging.warning(
          "TFF's worker is open to every user of this machine and to every"
          ' machine that reaches it: this system does not permit it a private'
          " network (%s). worker_network='shared' accepts that.",
          e,
        )
        self._process, self.address = _start_shared(
          command, self._log, resources
        )
      channel, self.stub = executor.connect(self.address)
      # Closed before the process is killed, or TFF would try the call again.
      resources.callback(channel.close)
      deadline = time.monotonic() + READY_WITHIN_SECONDS
      while not self.stub.is_ready:
        if not self.is_alive or time.monotonic() > deadline:
          raise WorkerError(self.condition)
        time.sleep(0.02)
      self._resources = resources.pop_all()

  @property
  def is_alive(self) -> bool:
    """Whether the process runs."""
    return self._process.poll() is None

  @property
  def condition(self) -> str:
    """The state of the process, and its last output."""
    state = (
      f'is not ready after {READY_WITHIN_SECONDS} seconds'
      if self.is_alive
      else f'ended with {self._process.returncode}'
    )
    self._log.seek(self._log_start)
    said = self._log.read()[-1000:].decode(errors='replace').strip()
    return f"TFF's worker {_BINARY} {state}. It said: {said or 'nothing'}"

  @property
  def pid(self) -> int:
    """The id of the process."""
    return self._process.pid

  def close(self) -> None:
    """Ends the process; again does nothing."""
    self._resources.close()


class _NotPermittedError(Exception):
  """The system does not permit a private network, and its reason."""


def _start_private(
  command: Sequence[str], log: BinaryIO, resources: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], str]:
  """Starts a worker that is reached through a unix socket only."""
  if sys.platform != 'linux':
    raise _NotPermittedError('only Linux has them')
  with contextlib.ExitStack() as own:
    # Where this process is killed, the proxy removes the folder.
    folder = tempfile.mkdtemp(prefix=f'tff_worker_{os.getpid()}_')
    own.callback(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, 'socket')
    listener = own.enter_context(socket.socket(socket.AF_UNIX))
    try:
      listener.bind(path)
    except OSError as e:
      raise _NotPermittedError(
        f'{path}: {e}; TMPDIR can name a shorter folder'
      ) from e
    listener.listen()
    ends = os.pipe()
    status = own.enter_context(open(ends[0], 'rb'))
    proxy_status = own.enter_context(open(ends[1], 'wb'))
    process, reason = _start(
      [
        *('--private', folder, str(listener.fileno())),
        *(str(proxy_status.fileno()), str(_PRIVATE_PORT)),
        *(*command, f'--port={_PRIVATE_PORT}'),
      ],
      log,
      own,
      (listener, proxy_status),
      status,
    )
    if reason:
      raise _NotPermittedError(reason)
    resources.push(own.pop_all())
  return process, f'unix:{path}'


def _start_shared(
  command: Sequence[str], log: BinaryIO, resources: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], str]:
  """Starts a worker that listens on all interfaces of this machine."""
  # Two workers can listen on one port (SO_REUSEPORT) and would get each other's
  # calls. This socket, which does not listen, reserves the port for our worker.
  is_ipv6 = socket.has_dualstack_ipv6()
  reserved = resources.enter_context(
    socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
  )
  reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
  reserved.bind(('', 0))
  port = reserved.getsockname()[1]
  process, _ = _start([*command, f'--port={port}'], log, resources)
  return process, f'localhost:{port}'


def _start(
  arguments: Sequence[str],
  log: BinaryIO,
  resources: contextlib.ExitStack,
  inherited: Sequence[Any] = (),
  status: BinaryIO | None = None,
) -> tuple[subprocess.Popen[bytes], str]:
  """Starts the launcher; returns the process and the first line of `status`."""
  started = concurrent.futures.Future()

  def run() -> None:
    try:
      process = subprocess.Popen(
        # On Linux it is killed when the thread that started it ends.
        [sys.executable, '-I', '-S', _LAUNCHER, str(os.getpid()), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # With less output a worker does not say why it failed.
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '0'},
        pass_fds=[file.fileno() for file in inherited],
        # Ctrl-C is for the program, which then ends the worker.
        start_new_session=True,
        # The states of clients are for nobody else.
        umask=0o077,
      )
      for file in inherited:
        file.close()
      line = status.readline().decode().strip() if status else ''
    except BaseException as e:
      started.set_exception(e)
      return
    started.set_result((process, line))
    if status:
      # Lasts until the proxy ends. No call reaches a worker without it.
      status.read()
      process.kill()
    process.wait()

  # The process ends with the thread that started it, so each has its own. Only
  # a daemon thread lives on while atexit handlers and other threads still call.
  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  process, line = started.result()
  resources.callback(thread.join)
  resources.callback(process.kill)
  return process, line
