"""The contexts that run TFF's computations in our workers or in remote ones.

TFF's own context starts the same worker, but as a rule leaves it behind. The
worker then holds the program's standard output, so that `program | tail` never
ends. Ours leaves nothing behind on Linux, however the program ends. Elsewhere a
worker outlives a program that is killed.

TensorFlow in the worker heeds TF_NUM_INTRAOP_THREADS and
TF_NUM_INTEROP_THREADS of the program's environment, not OMP_NUM_THREADS.
"""

import atexit
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import math
import os
import threading
from typing import Any

from absl import logging
import grpc
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias.runtime import errors
from tff_debias.runtime import executor
from tff_debias.runtime import tff_internals
from tff_debias.runtime import worker as worker_lib

_MAX_DEATHS_IN_A_CALL = 3
# TFF holds every client's inputs and outputs until the last client finishes. We
# therefore run clients in parts: for each client simulated at a time, at most
# 128 clients and 128 MiB of results.
_RESULT_BYTES_IN_MEMORY = 2**27
_CLIENTS_IN_MEMORY = 128


def _compile(comp: tff.framework.ConcreteComputation) -> Any:
  """TFF's `desugar_and_transform_to_native`, but no function is inlined.

  TensorFlow does not optimize a local step that is inlined into its loop. The
  step of a convolutional network then took 1.6 to 2 times as long.
  """
  _check_no_secure_sum(comp)
  config = tf.compat.v1.ConfigProto()
  options = config.graph_options.rewrite_options
  options.function_optimization = options.OFF
  options.memory_optimization = options.AGGRESSIVE
  options.constant_folding = options.AGGRESSIVE
  options.arithmetic_optimization = options.AGGRESSIVE
  options.loop_optimization = options.AGGRESSIVE
  block, _ = tff.tensorflow.replace_intrinsics_with_bodies(
    comp.to_building_block()
  )
  return tff.backends.native.transform_to_native_form(
    tff.framework.ConcreteComputation.from_building_block(block),
    grappler_config=config,
  )


def _check_no_secure_sum(comp: tff.framework.ConcreteComputation) -> None:
  try:
    tff.test.assert_not_contains_secure_aggregation(comp)
  except AssertionError:
    raise ValueError(
      'TFF simulates secure sums only in tff.backends.test: install'
      ' tff.backends.test.create_sync_test_cpp_execution_context() in place of'
      ' this context.'
    ) from None


_COMPILATION = dict(
  compiler_fn=_compile,
  transform_args=tff.tensorflow.transform_args,
  transform_result=tff.tensorflow.transform_result,
)


@functools.lru_cache(maxsize=20)
def _mergeable_form(
  comp: tff.framework.ConcreteComputation,
) -> tff.framework.MergeableCompForm | None:
  """The form of `comp` that runs in parts; `None` if it has none."""
  try:
    return tff.backends.native.compile_to_mergeable_comp_form(comp)
  except ValueError:  # One aggregation depends on another.
    return None


def _num_bytes(type_spec: tff.Type) -> int:
  """The size of the tensors in a type whose shapes are known."""
  return sum(
    np.dtype(t.dtype).itemsize * (tff.types.num_elements_in_shape(t.shape) or 0)
    for t in tff_internals.preorder_types(type_spec)
    if isinstance(t, tff.TensorType)
  )


_until_exit = contextlib.ExitStack()
atexit.register(_until_exit.close)


class _LocalContext(tff.framework.SyncExecutionContext):
  """A context with a worker of its own, which is replaced if it dies.

  It runs many clients in parts, so that memory does not grow with their number.
  """

  def __init__(self, max_concurrency: int | None, *args: Any):
    factory = executor.ExecutorFactory(self._living_stub)
    super().__init__(factory, **_COMPILATION)
    self._part_context = tff.framework.AsyncExecutionContext(
      factory, **_COMPILATION
    )
    self._max_concurrency = max_concurrency or os.cpu_count()
    self._args = (self._max_concurrency, *args)
    self._deaths = 0
    # TFF creates executors in its own thread, even while a Ctrl-C closes this.
    self._lock = threading.Lock()
    self._workers = contextlib.ExitStack()
    self._worker = self._start_worker()

  @property
  def worker_pid(self) -> int:
    """The id of the worker's process."""
    return self._worker.pid

  def invoke(self, comp: Any, arg: Any) -> Any:
    """See base class."""
    return errors.explained(self._invoke, comp, arg)

  def _invoke(self, comp: Any, arg: Any) -> Any:
    self._deaths = 0
    num_clients = tff_internals.infer_cardinalities(
      arg, comp.type_signature.parameter
    ).get(tff.CLIENTS, 0)
    share = max(
      _num_bytes(comp.type_signature.result) / _RESULT_BYTES_IN_MEMORY,
      1 / _CLIENTS_IN_MEMORY,
    )
    num_parts = math.ceil(num_clients / self._max_concurrency * min(share, 1))
    form = _mergeable_form(comp) if num_parts > 1 else None
    if form is None:
      return super().invoke(comp, arg)
    return tff.framework.MergeableCompExecutionContext(
      [self._part_context], num_subrounds=num_parts
    ).invoke(form, arg)

  def close(self) -> None:
    """Ends the worker; again does nothing."""
    with self._lock:
      self._worker = None
      self._workers.close()

  def _start_worker(self) -> worker_lib.Worker:
    return self._workers.enter_context(
      contextlib.closing(worker_lib.Worker(*self._args))
    )

  def _living_stub(self) -> tff.framework.RemoteExecutorGrpcStub:
    with self._lock:
      if self._worker is None:
        raise worker_lib.WorkerError('The context is closed.')
      if not self._worker.is_alive:
        self._deaths += 1
        # TFF tries a call again without end, also one that fills the memory.
        if self._deaths >= _MAX_DEATHS_IN_A_CALL:
          raise worker_lib.WorkerError(
            f'A call ended {self._deaths} workers; with -9 as a rule because'
            f' memory ran out. {self._worker.condition}'
          )
        logging.warning("TFF's worker ended; the call runs again in another.")
        # The dead one's channel stays open until the context is closed: TFF
        # tries a lost call of another thread again, but not one on a closed
        # channel.
        self._worker = self._start_worker()
      return self._worker.stub


@contextlib.contextmanager
def local_context(
  max_concurrency: int | None = None,
  log_file: str | os.PathLike[str] | None = None,
  worker_network: str = 'private',
) -> Iterator[tff.framework.SyncExecutionContext]:
  """Makes a worker of its own the default context of this thread.

  If the worker dies, another is started and the call runs again; a call that
  ends three workers fails.

  Many clients run in parts, one part after the other. A part has 128 clients
  for each client that is simulated at a time, and fewer if the computation
  returns more than 1 MiB. A computation in which one aggregation depends on
  another runs whole; this package has none.

  Args:
    max_concurrency: As in `Worker`. The memory grows with it, and not with the
      number of clients.
    log_file: As in `Worker`.
    worker_network: As in `Worker`.

  Yields:
    The context.

  Raises:
    ValueError: If `worker_network` is wrong.
    WorkerError: If the worker cannot be started. A call raises it too, and a
      `ComputationError` if the computation fails in the worker.
  """
  with contextlib.closing(
    _LocalContext(max_concurrency, log_file, worker_network)
  ) as context:
    with tff.framework.get_context_stack().install(context):
      yield context


def start_local_context(
  max_concurrency: int | None = None,
  log_file: str | os.PathLike[str] | None = None,
  worker_network: str = 'private',
) -> None:
  """As `local_context`, until the interpreter ends: for notebooks.

  Called again it replaces the worker, so that a cell can be run twice.

  Args:
    max_concurrency: As in `Worker`.
    log_file: As in `Worker`.
    worker_network: As in `Worker`.

  Raises:
    ValueError: As `local_context`.
    WorkerError: As `local_context`.
  """
  context = _LocalContext(max_concurrency, log_file, worker_network)
  _until_exit.close()
  _until_exit.callback(context.close)
  tff.framework.set_default_context(context)


class ProgramContext(tff.program.FederatedContext):
  """The present context, for TFF's program logic such as `train_model`.

  `tff.program.NativeFederatedContext` takes no structures placed at clients,
  such as an id with its data. Install this one inside of `local_context`:
  `tff.framework.get_context_stack().install(ProgramContext())`.
  """

  def __init__(self):
    self._context = tff.framework.get_context_stack().current

  def invoke(self, comp: Any, arg: Any) -> Any:
    """See base class."""
    return self._context.invoke(comp, arg)


class _RemoteContext(tff.framework.MergeableCompExecutionContext):
  """TFF's context of several workers, whose errors are explained."""

  def invoke(self, comp: Any, arg: Any = None) -> Any:
    """See base class."""
    return errors.explained(super().invoke, comp, arg)


@contextlib.contextmanager
def remote_context(
  addresses: Sequence[str],
) -> Iterator[tff.framework.MergeableCompExecutionContext]:
  """Makes workers that run already, also elsewhere, this thread's default.

  Each simulates its share of the clients. A computation has to be mergeable: no
  aggregation depends on another one. A worker that does not answer, now or
  later, has a minute to come back.

  Such a worker is open to everybody who reaches its port (see `Worker`). A
  firewall can keep other machines out, but not other users of its machine:

      nft add table inet tff
      nft add chain inet tff input '{ type filter hook input priority 0; }'
      nft add rule inet tff input ip saddr != ADDRESS tcp dport PORT drop

  Args:
    addresses: Where they listen, `HOST:PORT` or `unix:/PATH` each.

  Yields:
    The context.

  Raises:
    WorkerError: If one does not answer. A call raises it too, and a
      `ComputationError` if the computation fails in a worker.
  """
  with contextlib.ExitStack() as channels:
    contexts = []
    for address in addresses:
      channel, stub = executor.connect(address)
      channels.callback(channel.close)
      living_stub = functools.partial(_wait_for, address, channel, stub)
      living_stub()
      contexts.append(
        tff.framework.AsyncExecutionContext(
          executor.ExecutorFactory(living_stub), **_COMPILATION
        )
      )
    context = _RemoteContext(
      contexts, tff.backends.native.compile_to_mergeable_comp_form
    )
    with tff.framework.get_context_stack().install(context):
      yield context


def _wait_for(
  address: str,
  channel: grpc.Channel,
  stub: tff.framework.RemoteExecutorGrpcStub,
) -> tff.framework.RemoteExecutorGrpcStub:
  if not stub.is_ready:
    try:
      grpc.channel_ready_future(channel).result(worker_lib.READY_WITHIN_SECONDS)
    except grpc.FutureTimeoutError as e:
      raise worker_lib.WorkerError(f'No worker answers at {address}.') from e
  return stub


@atexit.register
def _retire_default_context() -> None:
  # TFF's own context ends its worker when it is deleted. At Python's own end
  # that fails with a traceback and leaves the worker behind.
  tff.framework.set_default_context(tff_internals.RuntimeErrorContext())
