"""Trains a process for some rounds: for notebooks and first experiments."""

import collections
from typing import Any
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks

ClientData: TypeAlias = tff.simulation.datasets.ClientData
Process: TypeAlias = tff.learning.templates.LearningProcess


def train(
  process: Process,
  client_data: ClientData,
  rounds: int,
  clients_per_round: int,
  local_steps: int,
  batch_size: int,
  seed: int = 0,
  *,
  state: Any = None,
) -> tuple[Any, list[dict[str, float]]]:
  """Trains a process, with a progress bar.

  A client of a round takes `local_steps` local steps. With a personalization a
  step takes two batches, support and query, and without one it takes one. So
  all methods take the same number of steps. The order of a client's examples
  is random, and they are repeated, so that all batches have the same size.

  >>> state, table = tff_debias.train(process, client_data, 50, 10, 20, 10)
  >>> print(table[-1])

  Args:
    process: A `tff.learning.templates.LearningProcess` that takes data sets:
      one of this package, or of TFF.
    client_data: The examples of the clients, not yet in batches.
    rounds: The number of rounds.
    clients_per_round: The number of clients in a round, drawn anew each time.
    local_steps: The number K of a client's local steps.
    batch_size: The number of examples in a batch.
    seed: Decides who takes part and the order of examples.
    state: The state to go on from, with another seed; by default the initial.

  Returns:
    The last state, and a table: for each round a dict of its number `round`,
    from 1, and the metrics of training on the participants' batches.

  Raises:
    ValueError: If a number is wrong, or a participant has no example.
    TypeError: If the process takes ids and not data sets.
  """
  for name, value in (
    ('rounds', rounds),
    ('clients_per_round', clients_per_round),
    ('local_steps', local_steps),
    ('batch_size', batch_size),
  ):
    checks.check_integer(name, value)
  if clients_per_round > len(client_data.client_ids):
    raise ValueError(
      f'clients_per_round must be at most {len(client_data.client_ids)}, the'
      f' number of clients, got {clients_per_round}.'
    )
  client_type = process.next.type_signature.parameter[1].member
  takes_id = isinstance(client_type, tff.StructType)
  if not takes_id and not isinstance(client_type, tff.SequenceType):
    raise TypeError(
      'The process must take data sets: give it as it was before'
      f' compose_with_client_data. It takes {client_type}.'
    )
  num_batches = local_steps * get_batches_per_step(process)
  sample = tff.simulation.build_uniform_sampling_fn(
    client_data.client_ids, random_seed=seed
  )
  state = process.initialize() if state is None else state
  bar = tf.keras.utils.Progbar(rounds, unit_name='round')
  table: list[dict[str, float]] = []
  for round_num in range(1, rounds + 1):
    participants: list[Any] = []
    for place, client_id in enumerate(sample(round_num, clients_per_round)):
      rng = np.random.default_rng([seed, round_num, place])
      data = _batches(client_data, client_id, batch_size, num_batches, rng)
      if takes_id:
        data = collections.OrderedDict(client_id=client_id, data=data)
      participants.append(data)
    state, metrics = process.next(state, participants)
    row = {
      name: float(value)
      for name, value in metrics['client_work']['train'].items()
      if np.ndim(value) == 0
    }
    table.append({'round': round_num, **row})
    bar.update(round_num)
  return state, table


def get_batches_per_step(process: Process) -> int:
  """The number of batches that a local step of a process takes.

  Args:
    process: A process of this package, also after `compose_with_client_data`,
      or of TFF.

  Returns:
    The personalization's `batches_per_step`: 1 without personalization, by
    default 2 (support and query). 1 for TFF's processes.
  """
  return getattr(process, '_batches_per_step', 1)


def with_batches_per_step(process: Process, number: int) -> Process:
  """Notes on a process what `get_batches_per_step` reads."""
  process._batches_per_step = number  # TFF's class has no place for it.
  return process


def _batches(
  client_data: ClientData,
  client_id: str,
  batch_size: int,
  num_batches: int,
  rng: np.random.Generator,
) -> tf.data.Dataset:
  examples = client_data.create_tf_dataset_for_client(client_id)
  num_examples = int(examples.reduce(0, lambda n, _: n + 1))
  if not num_examples:
    raise ValueError(f'{client_id} has no example to train on.')
  shuffled = examples.shuffle(num_examples, seed=int(rng.integers(2**31)))
  batches = shuffled.repeat().batch(batch_size, drop_remainder=True)
  return batches.take(num_batches)
