"""Says why a computation failed, in the words of its caller."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import re
from typing import Any

import grpc
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks
from tff_debias.runtime import tff_internals

_CANCELLED = 'Operation was cancelled'
# TensorFlow's words for a label that is no class, or for an index.
_WRONG_LABEL = re.compile(
  r'(?:label value of|indices(?:\[\d+\])? =) (-?\d+) .*\[0, (\d+)\)'
)


class ComputationError(RuntimeError):
  """A computation failed in a worker, and the reason."""


def explained(
  invoke: Callable[[Any, Any], Any], comp: tff.Computation, argument: Any
) -> Any:
  """Calls a computation, and explains the errors.

  Args:
    invoke: A context's function of a computation and its argument.
    comp: The computation.
    argument: Its argument.

  Returns:
    What the computation returns.

  Raises:
    ComputationError: If the computation failed in the worker.
    TypeError: If a client's value is of a wrong type.
  """
  try:
    return _explained(invoke, comp, argument)
  except ComputationError as e:
    # Now and then TensorFlow reports not an error, but an operation that the
    # error has ended.
    if str(e) != _CANCELLED:
      raise
    return _explained(invoke, comp, argument)


def _explained(
  invoke: Callable[[Any, Any], Any], comp: tff.Computation, argument: Any
) -> Any:
  try:
    return invoke(comp, argument)
  except grpc.RpcError as e:
    raise ComputationError(_reason(e.details() or str(e), argument)) from e
  except (TypeError, NotImplementedError) as e:
    wanted = [
      f' Each client gives {t.member}; what has names is an OrderedDict with'
      ' the names in this order.'
      for t in tff_internals.preorder_types(comp.type_signature.parameter)
      if isinstance(t, tff.FederatedType) and t.placement is tff.CLIENTS
    ]
    if not wanted:
      raise
    raise TypeError(f'{checks.first_line(e)}.{wanted[0]}') from e


def _reason(details: str, argument: Any) -> str:
  """The reason without the names of nodes in TensorFlow's graph."""
  details = re.sub(r'\{\{[^}]*\}\} ', '', details)
  details = re.split(r'\n\t \[\[| while evaluating local ', details)[0]
  details = details.removeprefix('Failed to run computation: ')
  if re.search("'(Eager)?PyFunc'", details):
    return (
      'The data or the model call a Python function (Dataset.from_generator,'
      ' tf.py_function), which a worker cannot. Make the data set of arrays, or'
      ' write it with dataset.save(path) and pass tf.data.Dataset.load(path).'
    )
  if wrong := _WRONG_LABEL.search(details):
    label, num_classes = int(wrong[1]), int(wrong[2])
    whose = ''.join(
      f' The client {client_id} has it.'
      for client_id, dataset in _clients(argument)
      if _has_integer(dataset, label)
    )
    return (
      'A label (or the index of an embedding) must be from 0 to'
      f' {num_classes - 1}, got {label}.{whose}'
    )
  return details


def _clients(argument: Any) -> Iterator[tuple[Any, Any]]:
  """The ids and the data of the clients in an argument of `next`."""
  for part in argument if isinstance(argument, tff.structure.Struct) else ():
    for client in part if isinstance(part, list) else ():
      with contextlib.suppress(LookupError, TypeError):
        yield client['client_id'], client['data']


def _has_integer(dataset: Any, value: int) -> bool:
  """Whether a batch of the data has the integer in a vector, its labels."""
  return any(
    bool(tf.reduce_any(tf.equal(tensor, tf.cast(value, tensor.dtype))))
    for batch in dataset
    for tensor in map(tf.convert_to_tensor, tf.nest.flatten(batch))
    if tensor.dtype.is_integer and tensor.shape.rank == 1
  )
