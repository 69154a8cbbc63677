"""Runs TFF's computations on several of TFF's workers."""

import asyncio
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
from typing import Any

import grpc
import tensorflow_federated as tff

from tff_debias.runtime import errors

_READY_WITHIN_SECONDS = 60
_MAX_MESSAGE_BYTES = 2 * 1000 * 1000 * 1000


class _Executor(tff.framework.RemoteExecutor):
  """TFF's executor, which lets other workers start while one works."""

  async def create_call(self, comp: Any, arg: Any = None) -> Any:
    """Calls a computation in a thread, for the call blocks."""
    call = super().create_call(comp, arg)
    return await asyncio.to_thread(asyncio.run, call)


class _RemoteContext(tff.framework.MergeableCompExecutionContext):
  """TFF's context of several workers, with errors in one sentence."""

  def invoke(self, comp: Any, arg: Any = None) -> Any:
    """Calls a computation; a failure is a `ComputationError`."""
    try:
      return super().invoke(comp, arg)
    except grpc.RpcError as e:
      details = (e.details() or str(e)).split(' while evaluating local ')[0]
      raise errors.ComputationError(
        f'A worker failed: {errors.reason(details)}'
      ) from e


@contextlib.contextmanager
def remote_context(addresses: Sequence[str]) -> Iterator[_RemoteContext]:
  """Runs this thread's computations on workers that run already.

  Each worker simulates its share of the clients. All workers must see the
  folder of the client states under the same path. A worker is open to whoever
  reaches its port: use a private network or an SSH tunnel.

  Args:
    addresses: Where the workers listen, `HOST:PORT` each.

  Yields:
    The context. It takes computations in which no aggregation depends on
    another one.

  Raises:
    ComputationError: If a worker does not answer within a minute, now or in a
      call, or if a computation fails.
  """
  contexts = []
  for address in addresses:
    create = _executor_factory(address)
    create({})  # It waits until the worker answers.
    contexts.append(
      tff.framework.AsyncExecutionContext(
        tff.framework.ResourceManagingExecutorFactory(create),
        compiler_fn=tff.backends.native.desugar_and_transform_to_native,
        transform_args=tff.tensorflow.transform_args,
        transform_result=tff.tensorflow.transform_result,
      )
    )
  context = _RemoteContext(
    contexts, tff.backends.native.compile_to_mergeable_comp_form
  )
  with tff.framework.get_context_stack().install(context):
    yield context


def _executor_factory(address: str) -> Any:
  """A function that makes an executor of a worker for numbers of clients."""
  sizes = ('max_message', 'max_receive_message', 'max_send_message')
  # Never closed: values in the worker are freed later, through the channel.
  channel = grpc.insecure_channel(
    address, [(f'grpc.{size}_length', _MAX_MESSAGE_BYTES) for size in sizes]
  )
  stub = tff.framework.RemoteExecutorGrpcStub(channel)

  def create(cardinalities: Any) -> tff.framework.RemoteExecutor:
    try:
      grpc.channel_ready_future(channel).result(_READY_WITHIN_SECONDS)
    except grpc.FutureTimeoutError as e:
      raise errors.ComputationError(f'No worker answers at {address}') from e
    executor = _Executor(stub)
    executor.set_cardinalities({tff.CLIENTS: 0, **cardinalities})
    return executor

  return create
