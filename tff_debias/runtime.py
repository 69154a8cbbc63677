"""TFF's native runtime, in a worker process that is never left behind.

TFF's own context starts the same worker, but stops it only if Python still can:
as a rule it stays behind and holds the program's standard output, so that
`program | tail` never ends.

**A worker listens on all interfaces, without authentication, and runs any graph
that it is sent: who reaches its port runs code as you.** It has no option to
listen on one address only. On a machine that others can reach, close its ports
with a firewall (for example `nft add rule inet filter input iifname != lo tcp
dport 1024-65535 drop`), or run the program in a container or a network
namespace of its own (`unshare --net`, with `ip link set lo up`).
"""

import atexit
from collections.abc import Sequence
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time

import grpc
import portpicker
import tensorflow_federated as tff
from tensorflow_federated.python.core.backends.native import compiler
from tensorflow_federated.python.core.environments.tensorflow_frontend import (
  tensorflow_computation,
)
from tensorflow_federated.python.core.impl.context_stack import (
  runtime_error_context,
)

_BINARY = os.path.join(os.path.dirname(tff.__file__), 'data', 'worker_binary')
_READY_WITHIN_SECONDS = 60
_MAX_MESSAGE_BYTES = 2 * 1000 * 1000 * 1000

# Runs in the child before the worker: a preexec_fn could deadlock, because the
# parent has threads. The signal comes when the parent's thread ends; the
# comparison is for a parent that ended before the call. Only Linux has it.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == 'linux':
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)
  if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
  os.execv(sys.argv[2], sys.argv[2:])
except OSError as e:
  sys.exit(str(e))
"""

# Its only thread lives as long as the interpreter, and so do the workers that
# it starts.
_starter = concurrent.futures.ThreadPoolExecutor(1)

_until_exit = contextlib.ExitStack()
atexit.register(_until_exit.close)


class WorkerError(RuntimeError):
  """A worker does not start, and what it said."""


class Worker:
  """A worker process on this machine, gone when this process is.

  Attributes:
    address: Where it listens, `localhost:PORT`.
  """

  def __init__(
    self,
    max_concurrency: int | None = None,
    log_file: str | os.PathLike[str] | None = None,
  ):
    """Starts the worker and waits until it is ready, about a second.

    Args:
      max_concurrency: How many devices it simulates at a time: memory grows
        with it. By default the number of cores.
      log_file: Where its output goes; by default a temporary file.

    Raises:
      WorkerError: If it cannot be started.
    """
    port = portpicker.pick_unused_port()
    self.address = f'localhost:{port}'
    command = [
      *(sys.executable, '-E', '-S', '-c', _LAUNCHER),
      *(str(os.getpid()), _BINARY, f'--port={port}'),
      f'--max_concurrent_computation_calls={max_concurrency or os.cpu_count()}',
    ]
    self._log = (
      open(log_file, 'w+b') if log_file else tempfile.TemporaryFile('w+b')
    )
    # A session of its own: Ctrl-C is for the program, which then ends it.
    self._process = _starter.submit(
      subprocess.Popen,
      command,
      stdin=subprocess.DEVNULL,
      stdout=self._log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    ).result()
    self._channel, self.stub = _connect(self.address)
    try:
      self._wait_until_ready()
    except BaseException:
      self.close()
      raise

  @property
  def is_alive(self) -> bool:
    """Whether the process runs."""
    return self._process.poll() is None

  def close(self) -> None:
    """Ends the process; again does nothing."""
    self._channel.close()
    if self.is_alive:
      self._process.send_signal(signal.SIGKILL)
    self._process.wait()
    self._log.close()

  def _wait_until_ready(self) -> None:
    deadline = time.monotonic() + _READY_WITHIN_SECONDS
    while not self.stub.is_ready:
      if not self.is_alive or time.monotonic() > deadline:
        self._log.seek(0)
        said = self._log.read()[-1000:].decode(errors='replace').strip()
        raise WorkerError(
          f"TFF's worker {_BINARY} "
          + (
            'is not ready after a minute'
            if self.is_alive
            else f'ended with {self._process.returncode}'
          )
          + f'. It said: {said or "nothing"}'
        )
      time.sleep(0.02)


@contextlib.contextmanager
def local_context(
  max_concurrency: int | None = None,
  log_file: str | os.PathLike[str] | None = None,
):
  """Makes a worker of its own the default context of this thread.

  If the worker dies, the call under way fails and the next starts another.

  Args:
    max_concurrency: As in `Worker`.
    log_file: As in `Worker`.

  Yields:
    The `tff.framework.SyncExecutionContext`.

  Raises:
    WorkerError: If the worker cannot be started.
  """
  workers = [Worker(max_concurrency, log_file)]

  def create_executor(cardinalities):
    if not workers[-1].is_alive:
      workers.append(Worker(max_concurrency, log_file))
    return _executor(workers[-1].stub, cardinalities)

  context = tff.framework.SyncExecutionContext(
    tff.framework.ResourceManagingExecutorFactory(create_executor),
    compiler.desugar_and_transform_to_native,
    transform_args=tensorflow_computation.transform_args,
    transform_result=tensorflow_computation.transform_result,
  )
  try:
    with tff.framework.get_context_stack().install(context):
      yield context
  finally:
    for worker in workers:
      worker.close()


def start_local_context(
  max_concurrency: int | None = None,
  log_file: str | os.PathLike[str] | None = None,
) -> None:
  """As `local_context`, until the interpreter ends: for notebooks.

  Args:
    max_concurrency: As in `Worker`.
    log_file: As in `Worker`.

  Raises:
    WorkerError: As `local_context`.
  """
  _until_exit.enter_context(local_context(max_concurrency, log_file))


class ProgramContext(tff.program.FederatedContext):
  """The present context, for TFF's program logic such as `train_model`.

  `tff.program.NativeFederatedContext` takes no structures placed at clients,
  such as an id with its data. Install it inside of `local_context`:
  `tff.framework.get_context_stack().install(ProgramContext())`.
  """

  def __init__(self):
    self._context = tff.framework.get_context_stack().current

  def invoke(self, comp, arg):
    """See base class."""
    return self._context.invoke(comp, arg)


@contextlib.contextmanager
def remote_context(addresses: Sequence[str]):
  """Makes workers that run already, also elsewhere, this thread's default.

  Each simulates its share of the devices. A computation has to be mergeable:
  all communication between two aggregations is within a share.

  Args:
    addresses: Where they listen, `HOST:PORT` each.

  Yields:
    The context.
  """
  channels, contexts = [], []
  for address in addresses:
    channel, stub = _connect(address)
    channels.append(channel)
    contexts.append(
      tff.framework.AsyncExecutionContext(
        tff.framework.ResourceManagingExecutorFactory(
          lambda cardinalities, stub=stub: _executor(stub, cardinalities)
        ),
        compiler.desugar_and_transform_to_native,
        transform_args=tensorflow_computation.transform_args,
        transform_result=tensorflow_computation.transform_result,
      )
    )
  context = tff.backends.native.create_mergeable_comp_execution_context(
    contexts
  )
  try:
    with tff.framework.get_context_stack().install(context):
      yield context
  finally:
    for channel in channels:
      channel.close()


def _connect(
  address: str,
) -> tuple[grpc.Channel, tff.framework.RemoteExecutorGrpcStub]:
  channel = grpc.insecure_channel(
    address,
    [
      (f'grpc.max_{kind}message_length', _MAX_MESSAGE_BYTES)
      for kind in ('', 'receive_', 'send_')
    ],
  )
  return channel, tff.framework.RemoteExecutorGrpcStub(channel)


def _executor(stub, cardinalities) -> tff.framework.RemoteExecutor:
  executor = tff.framework.RemoteExecutor(stub)
  executor.set_cardinalities({tff.CLIENTS: 0, **cardinalities})
  return executor


@atexit.register
def _retire_default_context() -> None:
  # TFF's own context ends its worker only while Python is whole; afterwards it
  # fails with a traceback and leaves the worker behind.
  tff.framework.set_default_context(runtime_error_context.RuntimeErrorContext())
