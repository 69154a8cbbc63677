"""TFF's remote executor, made faster and safe to use from several threads."""

import asyncio
import collections
from collections.abc import Callable
import concurrent.futures
import contextlib
import threading
from typing import Any
import weakref

import grpc
import tensorflow_federated as tff

from tff_debias.runtime import tff_internals

_MAX_MESSAGE_BYTES = 2 * 1000 * 1000 * 1000
# A value can outlive the worker (an RpcError) or the channel (a ValueError).
_LOST_CONNECTION = contextlib.suppress(ValueError, grpc.RpcError)


def connect(
  address: str,
) -> tuple[grpc.Channel, tff.framework.RemoteExecutorGrpcStub]:
  """Begins to connect to a worker.

  Args:
    address: Where it listens, `HOST:PORT` or `unix:/PATH`.

  Returns:
    The channel, to be closed after use, and TFF's stub, which uses it.
  """
  is_here = address.startswith(('localhost:', 'unix:'))
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
      ('grpc.enable_http_proxy', int(not is_here)),
    ],
  )
  return channel, tff.framework.RemoteExecutorGrpcStub(channel)


class ExecutorFactory(tff.framework.ExecutorFactory):
  """Keeps one executor for each number of clients, all of the same worker.

  TFF's factory keeps an executor even if its worker was replaced.
  """

  _MAX_EXECUTORS = 10

  def __init__(
    self, living_stub: Callable[[], tff.framework.RemoteExecutorGrpcStub]
  ):
    """Makes a factory without executors.

    Args:
      living_stub: Returns the connection to a worker that lives. It is called
        before each call of a computation.
    """
    self._living_stub = living_stub
    self._stub = None
    self._executors = collections.OrderedDict()
    self._lock = threading.Lock()

  def create_executor(self, cardinalities: Any) -> tff.framework.RemoteExecutor:
    """See base class."""
    cardinalities = {tff.CLIENTS: 0, **cardinalities}
    key = tuple(cardinalities.items())
    with self._lock:
      stub = self._living_stub()
      if stub is not self._stub:
        self._stub = stub
        self._drop(*self._executors)
      if key not in self._executors:
        executor = _Executor(stub)
        executor.set_cardinalities(cardinalities)
        self._executors[key] = executor
      self._executors.move_to_end(key)
      if len(self._executors) > self._MAX_EXECUTORS:
        self._drop(next(iter(self._executors)))
      return self._executors[key]

  def clean_up_executor(self, cardinalities: Any) -> None:
    """See base class; here a call in another thread may still go on."""
    key = tuple({tff.CLIENTS: 0, **cardinalities}.items())
    with self._lock:
      self._drop(*{key} & self._executors.keys())

  def _drop(self, *keys: Any) -> None:
    for key in keys:
      self._executors.pop(key).forget_computations()


class _Executor(tff.framework.RemoteExecutor):
  """TFF's executor, which sends a computation once and waits in a thread.

  TFF's sends the computation with every call, which takes a seventh of a round
  of a tiny model. And while it waits for one worker, no other worker gets its
  call.
  """

  _MAX_COMPUTATIONS = 8

  def __init__(self, stub: tff.framework.RemoteExecutorGrpcStub):
    # A call makes four values in the worker. They are freed after each call.
    super().__init__(stub, dispose_batch_size=4)
    self._computations = {}

  def set_cardinalities(self, cardinalities: Any) -> None:
    """See base class."""
    super().set_cardinalities(cardinalities)
    # TFF never frees an executor that its factory drops. Ours ends with the
    # last of its values, so a call that goes on in another thread keeps it.
    request = tff_internals.DisposeExecutorRequest(executor=self._executor_id)
    weakref.finalize(self, _dispose, self._stub, request).atexit = False

  def forget_computations(self) -> None:
    """Frees what was kept for later calls, of which there will be none."""
    self._computations.clear()

  async def create_value(self, value: Any, type_spec: Any = None) -> Any:
    """See base class."""
    if not isinstance(value, tff.framework.ConcreteComputation):
      return await super().create_value(value, type_spec)
    # Known by identity: comparing two is slower than sending one.
    if id(value) not in self._computations:
      created = await super().create_value(value, type_spec)
      if len(self._computations) == self._MAX_COMPUTATIONS:
        del self._computations[next(iter(self._computations))]
      self._computations[id(value)] = (value, created)
    return self._computations[id(value)][1]

  def _dispose(self, *args: Any) -> None:
    with _LOST_CONNECTION:
      super()._dispose(*args)

  async def create_call(self, comp: Any, arg: Any = None) -> Any:
    """See base class."""
    call = super().create_call(comp, arg)
    # No pool of threads: it takes no more work once the interpreter ends.
    return await asyncio.wrap_future(_in_thread(lambda: asyncio.run(call)))


def _dispose(stub, request) -> None:
  with _LOST_CONNECTION:
    stub.dispose_executor(request)


def _in_thread(function: Callable[[], Any]) -> concurrent.futures.Future:
  result = concurrent.futures.Future()

  def run() -> None:
    try:
      result.set_result(function())
    except BaseException as e:
      result.set_exception(e)

  threading.Thread(target=run, daemon=True).start()
  return result
