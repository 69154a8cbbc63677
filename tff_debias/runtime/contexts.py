"""The contexts that run TFF's computations in this process.

TensorFlow runs them on the cores, and on a GPU if it sees one. It heeds
TF_NUM_INTRAOP_THREADS and TF_NUM_INTEROP_THREADS, not OMP_NUM_THREADS.
"""

import asyncio
import atexit
from collections.abc import Iterator
import concurrent.futures
import contextlib
import os
from typing import Any
from typing import TypeAlias
import weakref

import tensorflow_federated as tff

from tff_debias.runtime import programs
from tff_debias.runtime import values

_Computation: TypeAlias = tff.framework.ConcreteComputation


class LocalContext(tff.framework.SyncContext):
  """Runs computations in this process; may be used from several threads.

  A computation is compiled when it is first called, and freed with the
  computation.
  """

  def __init__(self, max_concurrency: int | None = None):
    """Makes a context.

    Args:
      max_concurrency: How many clients run at the same time, by default one for
        each core. Memory grows with it, and not with the number of clients.
    """
    self._max_concurrency = max_concurrency or os.cpu_count() or 1
    self._clients = concurrent.futures.ThreadPoolExecutor(self._max_concurrency)
    self._calls = concurrent.futures.ThreadPoolExecutor()
    # By identity: a hash serializes the computation, with all its constants.
    self._programs: dict[int, programs.Program] = {}

  def invoke(self, comp: _Computation, arg: Any) -> Any:
    """Calls a computation; Ctrl-C ends the call.

    Args:
      comp: The computation.
      arg: Its argument.

    Returns:
      Its result, of NumPy arrays.

    Raises:
      ComputationError: If the server or a client failed.
      NotImplementedError: If the computation does not run in this process.
      TypeError: If the argument is of a wrong type.
      ValueError: If a data set has no end.
    """
    # TensorFlow heeds no signals, so it runs in another thread.
    call, future = self.start(comp, arg)
    try:
      return future.result()
    except BaseException:
      call.cancel()
      concurrent.futures.wait([future], timeout=1)
      raise

  def start(
    self, comp: _Computation, arg: Any
  ) -> tuple[programs.Call, concurrent.futures.Future[Any]]:
    """Begins a call; returns the call and its future result."""
    call = programs.Call(self._clients, self._max_concurrency)
    return call, self._calls.submit(self._run, call, comp, arg)

  def _run(self, call: programs.Call, comp: _Computation, arg: Any) -> Any:
    # First, because a compilation takes long.
    server, clients = values.flatten_argument(
      arg, comp.type_signature.parameter
    )
    program = self._programs.get(id(comp))
    if program is None:
      program = self._programs.setdefault(id(comp), programs.Program())
      weakref.finalize(comp, self._programs.pop, id(comp), None).atexit = False
    return program.run(comp, call, server, clients)

  def close(self) -> None:
    """Ends the threads, once the calls have ended."""
    self._calls.shutdown()
    self._clients.shutdown()


@contextlib.contextmanager
def local_context(max_concurrency: int | None = None) -> Iterator[LocalContext]:
  """Runs this thread's computations in this process.

  A secure sum is a plain sum of the integers that clients would mask.

  Args:
    max_concurrency: As in `LocalContext`.

  Yields:
    The context. Its calls raise the errors of `LocalContext.invoke`.
  """
  with contextlib.closing(LocalContext(max_concurrency)) as context:
    with tff.framework.get_context_stack().install(context):
      yield context


def start_local_context(max_concurrency: int | None = None) -> None:
  """Runs all computations in this process from now on: for notebooks.

  Args:
    max_concurrency: As in `LocalContext`.
  """
  tff.framework.set_default_context(LocalContext(max_concurrency))


# TFF's own context is the default until then. It prints a traceback if it is
# deleted while Python ends.
atexit.register(start_local_context)


class AsyncLocalContext(tff.framework.AsyncContext):
  """A `LocalContext` whose calls are awaited.

  >>> tff.program.NativeFederatedContext(runtime.AsyncLocalContext())
  """

  def __init__(self, context: LocalContext | None = None):
    """Awaits the calls of `context`, by default of a new context."""
    self._context = context or LocalContext()

  async def invoke(self, comp: Any, arg: Any) -> Any:
    """Calls a computation as `LocalContext.invoke`; a cancellation ends it."""
    if isinstance(comp, _Bound):
      comp, arg = comp.comp, await tff.program.materialize_value(comp.arg)
    call, future = self._context.start(comp, arg)
    try:
      return await asyncio.wrap_future(future)
    except BaseException:
      call.cancel()
      raise


class _Bound:
  """A computation with its argument, so without a parameter."""

  def __init__(self, comp: _Computation, arg: Any):
    self.comp, self.arg = comp, arg
    self.type_signature = tff.FunctionType(None, comp.type_signature.result)


class ProgramContext(tff.program.NativeFederatedContext):
  """TFF's context for program logic such as `train_model`.

  `tff.program.NativeFederatedContext` takes no structures placed at clients,
  such as an id with its data; this one does.

  >>> with tff.framework.get_context_stack().install(runtime.ProgramContext()):
  ...   asyncio.run(tff.learning.programs.train_model(...))
  """

  def __init__(self, context: LocalContext | None = None):
    """Runs programs in `context`, by default in a new context."""
    super().__init__(AsyncLocalContext(context))

  def invoke(self, comp: _Computation, arg: Any) -> Any:
    """Begins a call; its results are references that a program awaits."""
    return super().invoke(_Bound(comp, arg), None)
