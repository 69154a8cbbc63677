"""Processes and evaluations that take client ids, and read the data."""

import collections
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
from typing import TypeAlias

import numpy as np
import tensorflow_federated as tff

from tff_debias import models
from tff_debias import partitions
from tff_debias import training

ClientData: TypeAlias = tff.simulation.datasets.ClientData


@contextlib.contextmanager
def _with_size_named() -> Iterator[None]:
  """Says what to do if the data are too large for a graph."""
  try:
    yield
  except Exception as e:
    if '2GB' not in str(e):
      raise
    raise ValueError(
      'The client data are larger than a graph may be, which is 2 GB. In place'
      ' of ids, give the process the data sets of the participants'
      ' (client_data.create_tf_dataset_for_client); or let the client data read'
      ' files.'
    ) from e


def client_data_from(
  examples: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> ClientData:
  """Client data of the arrays that each client has.

  >>> data = tff_debias.client_data_from({'phone_1': (x1, y1), ...})

  Args:
    examples: By the id of a client its inputs `[n, ...]` and its labels `[n,
      ...]`. The number n may differ between clients, and be 0.

  Returns:
    `tff.simulation.datasets.ClientData`, whose examples are an `OrderedDict` of
    `x` and `y` as in `partitions`. Integer labels become int32.

  Raises:
    ValueError: If there is no client, or a client's arrays differ in length, or
      clients differ in the shape or dtype of an example.
  """
  if not examples:
    raise ValueError('examples must have a client, got none.')
  arrays = {k: (np.asarray(x), np.asarray(y)) for k, (x, y) in examples.items()}
  first, kind = None, None
  for client_id, (x, y) in arrays.items():
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
      raise ValueError(
        f'{client_id} must have as many labels as inputs, got x'
        f' {list(x.shape)}, y {list(y.shape)}.'
      )
    found = [(a.dtype.name, list(a.shape[1:])) for a in (x, y)]
    first, kind = first or client_id, kind or found
    if found != kind:
      raise ValueError(
        f'All clients must have examples of one kind (x, y): {first} has'
        f' {kind}, {client_id} has {found}.'
      )
  x, y = (np.concatenate(parts) for parts in zip(*arrays.values(), strict=True))
  if y.dtype.kind in 'iu':
    y = y.astype(np.int32)
  ends = np.cumsum([len(labels) for _, labels in arrays.values()])
  indices = np.split(np.arange(len(y)), ends[:-1])
  return partitions.indexed_client_data(list(arrays), x, y, indices)


@_with_size_named()
def compose_with_client_data(
  process: tff.learning.templates.LearningProcess, client_data: ClientData
) -> tff.learning.templates.LearningProcess:
  """Makes `next` take the ids of the participants instead of their data.

  The data are read where a client is simulated. A worker receives ids only.
  `tff.simulation.build_uniform_sampling_fn` chooses ids for
  `run_training_process`, `tff.program.ClientIdDataSource` for `train_model`.

  >>> data = client_data.preprocess(lambda d: d.shuffle(99).batch(20).repeat(2))
  >>> process = tff_debias.compose_with_client_data(process, data)
  >>> state, metrics = process.next(state, ['client_0003', 'client_0007'])

  Args:
    process: A process of `build_learning_process`.
    client_data: The data, in batches of the model. It must make a dataset from
      an id inside of a graph, as `ClientData.from_clients_and_tf_fn` and
      `partitions` do.

  Returns:
    A `tff.learning.templates.LearningProcess` with the same state and metrics.

  Raises:
    TypeError: If the data are not those of the model.
    ValueError: If the data are in the graph, and larger than 2 GB.
  """
  return compose_with_dataset_computation(
    process, _dataset_computation(client_data)
  )


def compose_with_dataset_computation(
  process: tff.learning.templates.LearningProcess,
  dataset_computation: tff.Computation,
  id_computation: tff.Computation | None = None,
) -> tff.learning.templates.LearningProcess:
  """Makes `next` take clients of any type, from which their data are read.

  This does for all our processes what TFF's
  `compose_dataset_computation_with_learning_process` does for processes whose
  clients have no ids.

  >>> @tff.tensorflow.computation(np.str_)
  ... def read(path):
  ...   return tf.data.TFRecordDataset(path).map(parse).batch(20)
  >>> process = tff_debias.compose_with_dataset_computation(process, read)

  Args:
    process: A process of `build_learning_process`.
    dataset_computation: From a client to its batches.
    id_computation: From a client to its id, a string; by default, a client that
      is a string is its own id. Not used where clients keep no state.

  Returns:
    A `tff.learning.templates.LearningProcess` with the same state and metrics.

  Raises:
    TypeError: If the data are not those of the model, or a client has no id.
  """
  state_type, clients_type = process.next.type_signature.parameter
  client_type = dataset_computation.type_signature.parameter
  takes_ids = isinstance(clients_type.member, tff.StructType)
  _check_data(
    dataset_computation,
    clients_type.member.data if takes_ids else clients_type.member,
  )
  if (
    takes_ids and id_computation is None and client_type != tff.to_type(np.str_)
  ):
    raise TypeError(
      'Clients keep a state here, so each needs an id: give id_computation,'
      f' from a client, {client_type}, to a string.'
    )

  @tff.tensorflow.computation(client_type)
  def read_client(client):
    data = dataset_computation(client)
    if not takes_ids:
      return data
    client_id = client if id_computation is None else id_computation(client)
    return collections.OrderedDict(client_id=client_id, data=data)

  @tff.federated_computation(
    state_type, tff.FederatedType(client_type, tff.CLIENTS)
  )
  def next_fn(state, clients):
    return process.next(state, tff.federated_map(read_client, clients))

  composed = tff.learning.templates.LearningProcess(
    process.initialize,
    next_fn,
    process.get_model_weights,
    process.set_model_weights,
    get_hparams_fn=process.get_hparams,
    set_hparams_fn=process.set_hparams,
  )
  return training.with_batches_per_step(
    composed, training.get_batches_per_step(process)
  )


@_with_size_named()
def compose_evaluation_with_client_data(
  evaluation: tff.Computation, train: ClientData, test: ClientData
) -> tff.Computation:
  """Makes a personalized test take client ids instead of their data.

  Args:
    evaluation: A computation of `evaluation.py` over clients.
    train: The training data, in batches of the model, each example once.
    test: The test data, likewise.

  Returns:
    A computation of the model weights at the server and ids at the clients.

  Raises:
    TypeError: If the data are not those of the model.
    ValueError: If the data are in the graph, and larger than 2 GB.
  """
  weights_type, clients_type = evaluation.type_signature.parameter
  read_train, read_test = map(_dataset_computation, (train, test))
  for read, data_type in zip(
    (read_train, read_test), clients_type.member, strict=True
  ):
    _check_data(read, data_type)

  @tff.tensorflow.computation(np.str_)
  def read_client(client_id):
    return collections.OrderedDict(
      train=read_train(client_id), test=read_test(client_id)
    )

  @tff.federated_computation(
    weights_type, tff.FederatedType(np.str_, tff.CLIENTS)
  )
  def evaluate(weights, client_ids):
    return evaluation(weights, tff.federated_map(read_client, client_ids))

  return evaluate


def _dataset_computation(client_data: ClientData) -> tff.Computation:
  # Not its `dataset_computation`: in TFF's graph, `==` in the user's `map` or
  # `filter` would compare the identities of tensors.
  return models.computation(np.str_)(client_data.serializable_dataset_fn)


def _check_data(read: tff.Computation, wanted: tff.SequenceType) -> None:
  found = read.type_signature.result
  if not wanted.is_assignable_from(found):
    raise TypeError(
      f'The data of a client must be {wanted}, batches of the model, got'
      f' {found}. Shuffle, batch and repeat them in dataset_computation, or by'
      ' client_data.preprocess.'
    )
