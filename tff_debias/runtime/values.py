"""Takes values of TFF apart into tensors, and puts tensors together again."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import functools
import itertools
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias.runtime import functions

Tensors = functions.Tensors


def flatten_argument(
  arg: Any, parameter: tff.Type | None
) -> tuple[Tensors, dict[str, Tensors]]:
  """The tensors of an argument at the server, and those of each client by name.

  Raises:
    TypeError: If the argument is not of the type.
    ValueError: If a data set has no end, or numbers of clients differ.
  """
  if parameter is None:
    return [], {}
  if not has_clients(parameter):
    return flatten(arg, parameter), {}
  is_tuple = isinstance(parameter, tff.StructType)
  parts = _parts(arg, parameter) if is_tuple else [arg]
  server: Tensors = []
  columns = []
  for value, type_spec in zip(parts, placed_types(parameter), strict=True):
    if type_spec.placement is tff.SERVER:
      server += flatten(value, type_spec)
    else:
      columns.append(_flatten_clients(value, type_spec.member))
  if len(set(map(len, columns))) > 1:
    raise ValueError(
      'Each argument at clients must have as many clients, got'
      f' {", ".join(str(len(column)) for column in columns)}.'
    )
  own = zip(*(column.values() for column in columns), strict=True)
  clients = (list(itertools.chain(*tensors)) for tensors in own)
  return server, dict(zip(columns[0], clients, strict=True))


def placed_types(parameter: tff.Type) -> list[tff.FederatedType]:
  """The types of a computation's arguments, each with its placement."""
  if isinstance(parameter, tff.StructType):
    return [t for _, t in tff.structure.iter_elements(parameter)]
  return [parameter]


def has_clients(type_spec: tff.Type | None) -> bool:
  """Whether a type has a part at the clients."""
  return type_spec is not None and tff.types.contains(type_spec, is_at_clients)


def is_at_clients(type_spec: tff.Type) -> bool:
  """Whether the whole of a type is at the clients."""
  return getattr(type_spec, 'placement', None) is tff.CLIENTS


def _name(client: Any, place: int) -> str:
  """The place of a client from 0, and its id if its value has one."""
  client_id = client.get('client_id') if isinstance(client, Mapping) else client
  if isinstance(client_id, (str, bytes)):
    return f'Client {place} ({client_id!r})'
  return f'Client {place}'


def _flatten_clients(values: Any, type_spec: tff.Type) -> dict[str, Tensors]:
  if not isinstance(values, (list, tuple)):
    raise TypeError(
      f'Clients must be a list with a value of type {type_spec} for each, got'
      f' {values!r:.200}.'
    )
  clients = {}
  for place, value in enumerate(values):
    name = _name(value, place)
    try:
      clients[name] = flatten(value, type_spec)
    except (TypeError, ValueError) as e:
      raise type(e)(f'{name}: {e} Each client gives {type_spec}.') from e
  return clients


def flatten(value: Any, type_spec: tff.Type) -> Tensors:
  """The tensors of a value, in the order of its type."""
  match type_spec:
    case tff.TensorType():
      return [_tensor(value, type_spec)]
    case tff.SequenceType():
      return [_variant(value, type_spec)]
    case tff.FederatedType():
      return flatten(value, type_spec.member)
  tensors: Tensors = []
  for part, part_type in zip(_parts(value, type_spec), type_spec, strict=True):
    tensors += flatten(part, part_type)
  return tensors


def _parts(value: Any, type_spec: tff.StructType) -> list[Any]:
  """The elements of a structure."""
  names = [name for name, _ in tff.structure.iter_elements(type_spec)]
  match value:
    case list() | tuple() | tff.structure.Struct():
      parts = list(value)
    case Mapping():
      parts = [value[n] for n in names] if value.keys() == set(names) else []
    case _:
      parts = [getattr(value, n) for n in names if n and hasattr(value, n)]
  if len(parts) == len(names):
    return parts
  raise TypeError(f'Expected a value of type {type_spec}, got {value!r:.200}.')


def _tensor(value: Any, type_spec: tff.TensorType) -> tf.Tensor:
  dtype = tf.as_dtype(type_spec.dtype.type)
  has_dtype = hasattr(value, 'dtype') and dtype != tf.string
  try:
    tensor = tf.convert_to_tensor(value, None if has_dtype else dtype)
  except (TypeError, ValueError) as e:
    raise TypeError(f'Expected a value of type {type_spec}: {e}') from e
  if tensor.dtype != dtype or not tensor.shape.is_compatible_with(
    type_spec.shape
  ):
    raise TypeError(
      f'Expected a value of type {type_spec}, got one of shape {tensor.shape}'
      f' and type {tensor.dtype.name}.'
    )
  return tensor


def _variant(value: Any, type_spec: tff.SequenceType) -> tf.Tensor:
  if isinstance(value, list):
    value = _dataset(value, type_spec.element)
  if not isinstance(value, tf.data.Dataset):
    hint = ''
    if isinstance(value, Mapping) and 'client_id' in value:
      hint = ' Clients keep no state here: give the data set without an id.'
    raise TypeError(f'Expected a tf.data.Dataset, got {value!r:.200}.{hint}')
  if value.element_spec != _element_spec(type_spec):  # Rarely.
    found = tff.SequenceType(tff.types.tensorflow_to_type(value.element_spec))
    if not type_spec.is_assignable_from(found):
      raise TypeError(f'Expected a data set of type {type_spec}, got {found}.')
  variant = tf.data.experimental.to_variant(value)
  cardinality = tf.raw_ops.DatasetCardinality(input_dataset=variant)
  if cardinality == tf.data.INFINITE_CARDINALITY:
    raise ValueError(
      'The data set has no end: call `take` after `repeat`, or give `repeat` a'
      ' number.'
    )
  return variant


@functools.lru_cache
def _element_spec(type_spec: tff.SequenceType) -> Any:
  return tff.types.type_to_tf_tensor_specs(type_spec.element)


def _dataset(elements: list[Any], type_spec: tff.Type) -> tf.data.Dataset:
  """The data set of a list, which TFF takes in its place."""
  unflatten = unflattener(type_spec)
  values = [unflatten(iter(flatten(e, type_spec))) for e in elements]
  return tf.data.Dataset.from_generator(
    lambda: values,
    output_signature=tff.types.type_to_tf_tensor_specs(type_spec),
  )


def unflattener(type_spec: tff.Type) -> Callable[[Iterator[tf.Tensor]], Any]:
  """A function that puts the next tensors together to a value of a type.

  The value has NumPy arrays and data sets in the containers of the type.
  """
  leaf_types: list[tff.Type] = []

  def numbered(part: tff.Type) -> Any:
    match part:
      case tff.FederatedType():
        return numbered(part.member)
      case tff.StructType():
        elements = tff.structure.iter_elements(part)
        return tff.structure.Struct((n, numbered(t)) for n, t in elements)
    leaf_types.append(part)
    return len(leaf_types) - 1

  # Made once, for it takes ten times as long as to put values in their places.
  template = tff.types.type_to_py_container(numbered(type_spec), type_spec)

  def unflatten(tensors: Iterator[tf.Tensor]) -> Any:
    leaves = [_leaf(next(tensors), leaf_type) for leaf_type in leaf_types]

    def place(number: Any) -> Any:
      # To tf.nest, a Struct is no structure.
      if isinstance(number, tff.structure.Struct):
        return tff.structure.map_structure(place, number)
      return leaves[number]

    return tf.nest.map_structure(place, template)

  return unflatten


def _leaf(tensor: tf.Tensor, type_spec: tff.Type) -> Any:
  if isinstance(type_spec, tff.SequenceType):
    return tf.data.experimental.from_variant(tensor, _element_spec(type_spec))
  return tensor.numpy()
