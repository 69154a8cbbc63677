"""TFF's native runtime, in a worker process that is never left behind.

TFF's own context starts the same worker, but stops it only if Python still can:
as a rule it stays behind and holds the program's standard output, so that
`program | tail` never ends. On Linux nothing is left however the program ends;
elsewhere a worker outlives a program that is killed.

**A worker listens on all interfaces, without authentication, and runs any graph
that it is sent: who reaches its port runs code as you.** It has no option to
listen on one address only, and an unusual port is no protection. Where others
reach the machine or log in to it, run the program without a network (no root is
needed, but the data have to be there): `unshare -rn sh -c 'ip link set lo up &&
exec "$@"' - python program.py`, or a container with `--network none`. Against
other machines, not other users, a firewall is enough:

    nft add table inet tff
    nft add chain inet tff input '{ type filter hook input priority 0; }'
    nft add rule inet tff input iifname != lo tcp dport 1024-65535 \
      ct state new drop

TensorFlow in the worker heeds TF_NUM_INTRAOP_THREADS and
TF_NUM_INTEROP_THREADS of the program's environment, not OMP_NUM_THREADS.
"""

import asyncio
import atexit
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import concurrent.futures
import contextlib
import functools
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from absl import logging
import grpc
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.backends.native import compiler
from tensorflow_federated.python.core.backends.native import (
  mergeable_comp_compiler,
)
from tensorflow_federated.python.core.environments.tensorflow_backend import (
  tensorflow_tree_transformations,
)
from tensorflow_federated.python.core.environments.tensorflow_frontend import (
  tensorflow_computation,
)
from tensorflow_federated.python.core.impl.context_stack import (
  runtime_error_context,
)
from tensorflow_federated.python.core.impl.executors import cardinalities_utils
from tensorflow_federated.python.core.impl.types import type_analysis

_BINARY = os.path.join(os.path.dirname(tff.__file__), 'data', 'worker_binary')
_READY_WITHIN_SECONDS = 60
_MAX_MESSAGE_BYTES = 2 * 1000 * 1000 * 1000
_MAX_DEATHS_IN_A_CALL = 3
# TFF's executor keeps what a participant's work takes and gives until the last
# participant is done: some times what the computation returns, and the data.
# So much of that, and so many, for each that is simulated at a time.
_RESULT_BYTES_IN_MEMORY = 2**27
_PARTICIPANTS_IN_MEMORY = 128

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


def _compile(comp: tff.framework.ConcreteComputation) -> Any:
  """As TFF's `desugar_and_transform_to_native`, but functions stay functions.

  A local step that is inlined into its loop is not optimized by TensorFlow: it
  took 1.6 to 2 times as long for a convolutional network.
  """
  config = tf.compat.v1.ConfigProto()
  options = config.graph_options.rewrite_options
  options.function_optimization = options.OFF
  options.memory_optimization = options.AGGRESSIVE
  options.constant_folding = options.AGGRESSIVE
  options.arithmetic_optimization = options.AGGRESSIVE
  options.loop_optimization = options.AGGRESSIVE
  block, _ = tensorflow_tree_transformations.replace_intrinsics_with_bodies(
    comp.to_building_block()
  )
  return compiler.transform_to_native_form(
    tff.framework.ConcreteComputation.from_building_block(block),
    grappler_config=config,
  )


def tied(command: Sequence[str]) -> list[str]:
  """The command, for a process that does not outlive this one.

  Args:
    command: The path of a program, and its arguments.

  Returns:
    What starts it. On Linux it is killed when the thread that started it ends.
  """
  launcher = [sys.executable, '-I', '-S', '-c', _LAUNCHER, str(os.getpid())]
  return [*launcher, *command]


_COMPILATION = dict(
  compiler_fn=_compile,
  transform_args=tensorflow_computation.transform_args,
  transform_result=tensorflow_computation.transform_result,
)


@functools.lru_cache(maxsize=20)
def _mergeable_form(
  comp: tff.framework.ConcreteComputation,
) -> tff.framework.MergeableCompForm | None:
  """`comp` for some participants after the other, if it can be done so."""
  try:
    return mergeable_comp_compiler.compile_to_mergeable_comp_form(comp)
  except ValueError:  # One aggregation depends on another.
    return None


def _num_bytes(type_spec: tff.Type) -> int:
  """The size of the tensors in a type whose shapes are known."""
  return sum(
    np.dtype(t.dtype).itemsize * (tff.types.num_elements_in_shape(t.shape) or 0)
    for t in type_analysis.preorder_types(type_spec)
    if isinstance(t, tff.TensorType)
  )


_until_exit = contextlib.ExitStack()
atexit.register(_until_exit.close)


class WorkerError(RuntimeError):
  """A worker does not start or does not live, and what it said."""


class Worker:
  """A worker process on this machine, gone when this process is.

  Attributes:
    address: Where it listens, `localhost:PORT`.
    stub: TFF's connection to it.
  """

  def __init__(
    self,
    max_concurrency: int | None = None,
    log_file: str | os.PathLike[str] | None = None,
  ):
    """Starts the worker and waits until it is ready, about 0.1 seconds.

    Args:
      max_concurrency: How many devices it simulates at a time. By default the
        number of cores.
      log_file: What its output is appended to; by default a temporary file.

    Raises:
      WorkerError: If it cannot be started.
    """
    with contextlib.ExitStack() as resources:
      # Workers share a port without complaint (SO_REUSEPORT), and would get
      # each other's calls: this keeps the port from everybody but our worker.
      is_ipv6 = socket.has_dualstack_ipv6()
      port = resources.enter_context(
        socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
      )
      port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
      port.bind(('', 0))
      self.address = f'localhost:{port.getsockname()[1]}'
      self._log = resources.enter_context(
        open(log_file, 'ab+') if log_file else tempfile.TemporaryFile()
      )
      self._log_start = self._log.seek(0, os.SEEK_END)
      self._process = _start(
        [
          _BINARY,
          f'--port={port.getsockname()[1]}',
          '--max_concurrent_computation_calls='
          f'{max_concurrency or os.cpu_count()}',
        ],
        self._log,
      )
      resources.callback(self._process.wait)
      resources.callback(self._process.kill)
      channel, self.stub = _connect(self.address)
      # Closed before the process is killed, or TFF would try the call again.
      resources.callback(channel.close)
      deadline = time.monotonic() + _READY_WITHIN_SECONDS
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
    """How the process is, and what it said last."""
    state = (
      f'is not ready after {_READY_WITHIN_SECONDS} seconds'
      if self.is_alive
      else f'ended with {self._process.returncode}'
    )
    self._log.seek(self._log_start)
    said = self._log.read()[-1000:].decode(errors='replace').strip()
    return f"TFF's worker {_BINARY} {state}. It said: {said or 'nothing'}"

  @property
  def pid(self) -> int:
    """The process."""
    return self._process.pid

  def close(self) -> None:
    """Ends the process; again does nothing."""
    self._resources.close()


class _Executor(tff.framework.RemoteExecutor):
  """TFF's, which sends a computation once and lets other workers work.

  TFF's sends the computation with every call, a seventh of the time of a round
  of a tiny model; and while it waits for one worker no other gets its call.
  """

  _MAX_COMPUTATIONS = 8

  def __init__(self, stub: tff.framework.RemoteExecutorGrpcStub):
    # What a call takes and gives is four values: freed once it is done.
    super().__init__(stub, dispose_batch_size=4)
    self._computations = {}

  async def create_value(self, value: Any, type_spec: Any = None) -> Any:
    """See base class."""
    if not isinstance(value, tff.framework.ConcreteComputation):
      return await super().create_value(value, type_spec)
    # By identity: to compare two is slower than to send one.
    if id(value) not in self._computations:
      created = await super().create_value(value, type_spec)
      if len(self._computations) == self._MAX_COMPUTATIONS:
        del self._computations[next(iter(self._computations))]
      self._computations[id(value)] = (value, created)
    return self._computations[id(value)][1]

  def _dispose(self, *args: Any) -> None:
    # A value can live longer than the connection.
    with contextlib.suppress(ValueError):
      super()._dispose(*args)

  async def create_call(self, comp: Any, arg: Any = None) -> Any:
    """See base class."""
    call = super().create_call(comp, arg)
    # Not of a pool, which takes nothing more once the interpreter ends.
    return await asyncio.wrap_future(_in_thread(lambda: asyncio.run(call)))


class _LocalContext(tff.framework.SyncExecutionContext):
  """A context with a worker of its own, which is replaced if it dies.

  Of many participants it takes some after the other, so that memory does not
  grow with their number.
  """

  def __init__(self, max_concurrency: int | None, *args: Any):
    super().__init__(
      tff.framework.ResourceManagingExecutorFactory(self._create_executor),
      **_COMPILATION,
    )
    self._max_concurrency = max_concurrency or os.cpu_count()
    self._part_context = tff.framework.AsyncExecutionContext(
      tff.framework.ResourceManagingExecutorFactory(self._create_executor),
      **_COMPILATION,
    )
    self._args = (self._max_concurrency, *args)
    self._deaths = 0
    # TFF creates executors in a thread of its own, also while a Ctrl-C closes.
    self._lock = threading.Lock()
    self._worker = Worker(*self._args)

  @property
  def worker_pid(self) -> int:
    """The worker's process."""
    return self._worker.pid

  def invoke(self, comp: Any, arg: Any) -> Any:
    """See base class."""
    self._deaths = 0
    participants = cardinalities_utils.infer_cardinalities(
      arg, comp.type_signature.parameter
    ).get(tff.CLIENTS, 0)
    share = max(
      _num_bytes(comp.type_signature.result) / _RESULT_BYTES_IN_MEMORY,
      1 / _PARTICIPANTS_IN_MEMORY,
    )
    num_parts = math.ceil(participants / self._max_concurrency * min(share, 1))
    form = _mergeable_form(comp) if num_parts > 1 else None
    if form is None:
      return super().invoke(comp, arg)
    return tff.framework.MergeableCompExecutionContext(
      [self._part_context], num_subrounds=num_parts
    ).invoke(form, arg)

  def close(self) -> None:
    """Ends the worker; again does nothing."""
    with self._lock:
      if self._worker is not None:
        self._worker.close()
      self._worker = None

  def _create_executor(self, cardinalities) -> tff.framework.RemoteExecutor:
    with self._lock:
      if self._worker is None:
        raise WorkerError('The context is closed.')
      if not self._worker.is_alive:
        self._deaths += 1
        # TFF tries a call again without end, also one that fills the memory.
        if self._deaths >= _MAX_DEATHS_IN_A_CALL:
          raise WorkerError(
            f'A call ended {self._deaths} workers; with -9 as a rule because'
            f' memory ran out. {self._worker.condition}'
          )
        logging.warning("TFF's worker ended; the call runs again in another.")
        dead, self._worker = self._worker, Worker(*self._args)
        dead.close()
      return _executor(self._worker.stub, cardinalities)


@contextlib.contextmanager
def local_context(
  max_concurrency: int | None = None,
  log_file: str | os.PathLike[str] | None = None,
) -> Iterator[tff.framework.SyncExecutionContext]:
  """Makes a worker of its own the default context of this thread.

  If the worker dies, another is started and TFF runs the call again; a call
  that ends three workers fails. Of many participants (128 for each that is
  simulated at a time, fewer if the computation returns more than 1 MB) some are
  taken after the other, if no aggregation depends on another, as in all of our
  computations.

  Args:
    max_concurrency: As in `Worker`. The memory grows with it, and not with the
      number of participants.
    log_file: As in `Worker`.

  Yields:
    The context.

  Raises:
    WorkerError: If the worker cannot be started.
  """
  with contextlib.closing(_LocalContext(max_concurrency, log_file)) as context:
    with tff.framework.get_context_stack().install(context):
      yield context


def start_local_context(
  max_concurrency: int | None = None,
  log_file: str | os.PathLike[str] | None = None,
) -> None:
  """As `local_context`, until the interpreter ends: for notebooks.

  Called again it replaces the worker, so that a cell can be run twice.

  Args:
    max_concurrency: As in `Worker`.
    log_file: As in `Worker`.

  Raises:
    WorkerError: As `local_context`.
  """
  context = _LocalContext(max_concurrency, log_file)
  _until_exit.close()
  _until_exit.callback(context.close)
  tff.framework.set_default_context(context)


class ProgramContext(tff.program.FederatedContext):
  """The present context, for TFF's program logic such as `train_model`.

  `tff.program.NativeFederatedContext` takes no structures placed at clients,
  such as an id with its data. Install it inside of `local_context`:
  `tff.framework.get_context_stack().install(ProgramContext())`.
  """

  def __init__(self):
    self._context = tff.framework.get_context_stack().current

  def invoke(self, comp: Any, arg: Any) -> Any:
    """See base class."""
    return self._context.invoke(comp, arg)


@contextlib.contextmanager
def remote_context(
  addresses: Sequence[str],
) -> Iterator[tff.framework.MergeableCompExecutionContext]:
  """Makes workers that run already, also elsewhere, this thread's default.

  Each simulates its share of the devices. A computation has to be mergeable:
  all communication between two aggregations is within a share. A worker that
  does not answer, now or later, has a minute to come back.

  Args:
    addresses: Where they listen, `HOST:PORT` each.

  Yields:
    The context.

  Raises:
    WorkerError: If one does not answer.
  """
  with contextlib.ExitStack() as channels:
    contexts = []
    for address in addresses:
      channel, stub = _connect(address)
      channels.callback(channel.close)
      _wait_for(address, channel)

      def create_executor(
        cardinalities, address=address, channel=channel, stub=stub
      ):
        _wait_for(address, channel)
        return _executor(stub, cardinalities)

      contexts.append(
        tff.framework.AsyncExecutionContext(
          tff.framework.ResourceManagingExecutorFactory(create_executor),
          **_COMPILATION,
        )
      )
    context = tff.backends.native.create_mergeable_comp_execution_context(
      contexts
    )
    with tff.framework.get_context_stack().install(context):
      yield context


def _start(command: Sequence[str], log: Any) -> subprocess.Popen[bytes]:
  started = concurrent.futures.Future()

  def run() -> None:
    try:
      process = subprocess.Popen(
        tied(command),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # In a file it is 1 KB that no one has to see, and says what happened.
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '0'},
        # Ctrl-C is for the program, which then ends it.
        start_new_session=True,
      )
    except BaseException as e:
      started.set_exception(e)
      return
    started.set_result(process)
    process.wait()

  # The child ends with the thread that started it, so each has its own; as a
  # daemon it lives on while atexit handlers and other threads still call.
  threading.Thread(target=run, daemon=True).start()
  return started.result()


def _in_thread(function: Callable[[], Any]) -> concurrent.futures.Future:
  result = concurrent.futures.Future()

  def run() -> None:
    try:
      result.set_result(function())
    except BaseException as e:
      result.set_exception(e)

  threading.Thread(target=run, daemon=True).start()
  return result


def _connect(
  address: str,
) -> tuple[grpc.Channel, tff.framework.RemoteExecutorGrpcStub]:
  channel = grpc.insecure_channel(
    address,
    [
      *(
        (f'grpc.max_{kind}message_length', _MAX_MESSAGE_BYTES)
        for kind in ('', 'receive_', 'send_')
      ),
      # A new worker listens before gRPC's default of a second has passed.
      ('grpc.initial_reconnect_backoff_ms', 50),
      ('grpc.max_reconnect_backoff_ms', 1000),
      # With http_proxy set, gRPC asks the proxy for localhost too.
      ('grpc.enable_http_proxy', int(not address.startswith('localhost:'))),
    ],
  )
  return channel, tff.framework.RemoteExecutorGrpcStub(channel)


def _wait_for(address: str, channel: grpc.Channel) -> None:
  try:
    grpc.channel_ready_future(channel).result(_READY_WITHIN_SECONDS)
  except grpc.FutureTimeoutError as e:
    raise WorkerError(f'No worker answers at {address}.') from e


def _executor(stub, cardinalities) -> tff.framework.RemoteExecutor:
  executor = _Executor(stub)
  executor.set_cardinalities({tff.CLIENTS: 0, **cardinalities})
  return executor


@atexit.register
def _retire_default_context() -> None:
  # TFF's own context ends its worker only while Python is whole; afterwards it
  # fails with a traceback and leaves the worker behind.
  tff.framework.set_default_context(runtime_error_context.RuntimeErrorContext())
