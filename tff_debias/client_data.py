"""Processes and evaluations that take client ids, and read the data."""

import collections
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import tensorflow_federated as tff

from tff_debias import partitions
from tff_debias import training

ClientData: TypeAlias = tff.simulation.datasets.ClientData


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


def compose_with_client_data(
  process: tff.learning.templates.LearningProcess, client_data: ClientData
) -> tff.learning.templates.LearningProcess:
  """Makes `next` take the ids of the participants instead of their data.

  Only ids are sent to a worker, which reads the data. This does for our
  processes what TFF's `compose_dataset_computation_with_learning_process` does
  for others. `tff.simulation.build_uniform_sampling_fn` chooses ids for
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
  """
  state_type, clients_type = process.next.type_signature.parameter
  takes_ids = isinstance(clients_type.member, tff.StructType)
  read = _dataset_computation(
    client_data, clients_type.member.data if takes_ids else clients_type.member
  )

  @tff.tensorflow.computation(np.str_)
  def read_client(client_id):
    if not takes_ids:
      return read(client_id)
    return collections.OrderedDict(client_id=client_id, data=read(client_id))

  @tff.federated_computation(
    state_type, tff.FederatedType(np.str_, tff.CLIENTS)
  )
  def next_fn(state, client_ids):
    return process.next(state, tff.federated_map(read_client, client_ids))

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
  """
  weights_type, clients_type = evaluation.type_signature.parameter
  read_train, read_test = (
    _dataset_computation(data, data_type)
    for data, data_type in zip((train, test), clients_type.member, strict=True)
  )

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


def _dataset_computation(
  client_data: ClientData, wanted: tff.SequenceType
) -> tff.Computation:
  computation = client_data.dataset_computation
  found = computation.type_signature.result
  if not wanted.is_assignable_from(found):
    raise TypeError(
      f'The client data must be {wanted}, batches of the model, got {found}.'
      ' Use client_data.preprocess to shuffle, batch and repeat them.'
    )
  return computation
