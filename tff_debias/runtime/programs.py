"""Compiles a computation to TensorFlow functions that Python drives.

TFF compiles a computation over clients to six functions, its `MapReduceForm`.
Python calls them: `prepare` and `zero` once, `work` and `accumulate` for one
client after the other, `report` and `update` once.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import itertools
import threading
from typing import Any
from typing import TypeAlias

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import internals
from tff_debias.runtime import errors
from tff_debias.runtime import functions
from tff_debias.runtime import values

Tensors = functions.Tensors
_Computation: TypeAlias = tff.framework.ConcreteComputation
_mapreduce = tff.backends.mapreduce


class Call:
  """A call in progress: runs functions until it is canceled."""

  def __init__(self, pool: concurrent.futures.Executor, max_concurrency: int):
    """Begins a call that runs its clients in `pool`."""
    self._pool = pool
    self._max_concurrency = max_concurrency
    self._lock = threading.Lock()
    self._is_canceled = False
    # One for each function that runs. TensorFlow cancels it if the function
    # fails, and others that had it would end without a reason.
    self._running: set[internals.CancellationManager] = set()

  def cancel(self) -> None:
    """Ends the functions that run, and all that would run next."""
    with self._lock:
      self._is_canceled = True
      for cancellation in self._running:
        cancellation.start_cancel()

  def run(
    self,
    function: functions.Function,
    inputs: Tensors,
    who: str = 'The server',
  ) -> Tensors:
    """Runs a function of `who`.

    Raises:
      concurrent.futures.CancelledError: If the call was canceled.
      ComputationError: If the function failed.
    """
    cancellation = internals.CancellationManager()
    with self._lock:
      if self._is_canceled:
        raise concurrent.futures.CancelledError
      self._running.add(cancellation)
    try:
      return function(inputs, cancellation)
    except tf.errors.OpError as e:
      raise errors.ComputationError(
        f'{who} failed: {errors.reason(e.message)}'
      ) from e
    finally:
      with self._lock:
        self._running.remove(cancellation)

  def map(
    self, function: functions.Function, clients: Iterable[tuple[str, Tensors]]
  ) -> Iterator[Tensors]:
    """Yields the outputs of each client, in their order, few at a time."""
    running: collections.deque = collections.deque()
    for name, inputs in clients:
      running.append(self._pool.submit(self.run, function, inputs, name))
      if len(running) > self._max_concurrency:
        yield running.popleft().result()
    while running:
      yield running.popleft().result()


_Run: TypeAlias = Callable[[Call, Tensors, dict[str, Tensors]], Tensors]


class Program:
  """What a computation is compiled to, once it is first run."""

  def __init__(self) -> None:
    # Not one lock for all: an interrupted compilation runs out behind, and
    # calls of other computations do not wait for it.
    self._lock = threading.Lock()
    self._compiled: tuple[_Run, Callable[[Iterator[tf.Tensor]], Any]]

  def run(
    self,
    comp: _Computation,
    call: Call,
    server: Tensors,
    clients: dict[str, Tensors],
  ) -> Any:
    """The result for the tensors at the server and those of each client."""
    result = comp.type_signature.result
    is_at_clients = values.is_at_clients(result)
    with self._lock:
      if not hasattr(self, '_compiled'):
        like = result.member if is_at_clients else result
        self._compiled = _compile(comp), values.unflattener(like)
    run, unflatten = self._compiled
    results = iter(run(call, server, clients))
    if is_at_clients:
      return [unflatten(results) for _ in clients]
    return unflatten(results)


def _compile(comp: _Computation) -> _Run:
  """Compiles a computation.

  Raises:
    NotImplementedError: If TFF has no form of the computation in which clients
      work once and independently of each other.
  """
  parameter, result = comp.type_signature.parameter, comp.type_signature.result
  try:
    if not values.has_clients(parameter):
      return _compile_local(comp)
    if values.is_at_clients(result):
      return _compile_broadcast(comp)
    return _compile_aggregation(comp)
  except Exception as e:
    raise NotImplementedError(
      f'A computation of type {comp.type_signature!s:.300} does not run in this'
      f' process: {e!s:.300}\nThe context of TFF may run it:'
      ' tff.backends.native.create_sync_local_cpp_execution_context().'
    ) from e


def _compile_local(comp: _Computation) -> _Run:
  if _Computation.get_proto(comp).WhichOneof('computation') != 'tensorflow':
    block = _mapreduce.consolidate_and_extract_local_processing(
      comp.to_building_block(), functions.NO_GRAPPLER
    )
    comp = _Computation.from_building_block(block)
  function = functions.Function(comp)
  return lambda call, server, clients: call.run(function, server)


def _compile_aggregation(comp: _Computation) -> _Run:
  proto = _Computation.get_proto(comp)
  # To look for secure sums in the tree takes a fifth of the compilation.
  has_secure_sums = b'federated_secure' in proto.SerializeToString()
  form = _mapreduce.get_map_reduce_form_for_computation(
    _of_two_arguments(comp, lambda server, result: (server, result)),
    functions.NO_GRAPPLER,
    tff_internal_preprocessing=(
      _without_secure_sums if has_secure_sums else None
    ),
  )
  names = ('prepare', 'work', 'zero', 'accumulate', 'report', 'update')
  prepare, work, zero, accumulate, report, update = (
    functions.Function(getattr(form, name)) for name in names
  )

  def run(call: Call, server: Tensors, clients: dict[str, Tensors]) -> Tensors:
    sent = call.run(prepare, server)
    total = call.run(zero, [])
    inputs = ((name, [*own, *sent]) for name, own in clients.items())
    for upload in call.map(work, inputs):
      total = call.run(accumulate, [*total, *upload])
    return call.run(update, [*server, *call.run(report, total)])[len(server) :]

  return run


def _compile_broadcast(comp: _Computation) -> _Run:
  form = _mapreduce.get_broadcast_form_for_computation(
    _of_two_arguments(comp, lambda server, result: result),
    functions.NO_GRAPPLER,
  )
  prepare = functions.Function(form.compute_server_context)
  work = functions.Function(form.client_processing)

  def run(call: Call, server: Tensors, clients: dict[str, Tensors]) -> Tensors:
    sent = call.run(prepare, server)
    inputs = ((name, [*sent, *own]) for name, own in clients.items())
    return list(itertools.chain(*call.map(work, inputs)))

  return run


def _without_secure_sums(block: Any) -> Any:
  """Replaces secure sums by sums of the integers that clients would mask."""
  comp = tff.backends.test.replace_secure_intrinsics_with_bodies(
    _Computation.from_building_block(block)
  )
  return comp.to_building_block()


def _of_two_arguments(
  comp: _Computation, returned: Callable[[Any, Any], Any]
) -> _Computation:
  """The computation of two tuples: the parts at the server and at clients."""
  types = values.placed_types(comp.type_signature.parameter)

  def tuple_at(placement: tff.framework.PlacementLiteral) -> tff.FederatedType:
    members = [t.member for t in types if t.placement is placement]
    return tff.FederatedType(members, placement)

  @tff.federated_computation(tuple_at(tff.SERVER), tuple_at(tff.CLIENTS))
  def of_two_arguments(server, clients):
    parts = {tff.SERVER: iter(server), tff.CLIENTS: iter(clients)}
    return returned(server, comp(*(next(parts[t.placement]) for t in types)))

  return of_two_arguments
