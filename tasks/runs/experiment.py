"""Makes the data, the model and the learning process that settings name."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import enum
import functools
import itertools
import math
from typing import Any
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tqdm

from tasks import catalog
from tasks.catalog import networks
from tasks.runs import errors
from tasks.runs import methods
from tasks.runs import pipeline
from tasks.runs import settings as settings_lib
import tff_debias
from tff_debias import partitions

ClientData: TypeAlias = tff.simulation.datasets.ClientData

#: The examples in a batch of a test, or of a check.
EVALUATION_BATCH_SIZE = 500

# The data of so many clients are in memory at a time.
_CLIENTS_PER_CALL = 20


class Stream(enum.IntEnum):
  """What is drawn by the seed of a run, beside the order of the examples."""

  TESTED_CLIENTS = 1
  USERS = 2
  HELD_OUT_CLIENTS = 3
  EVALUATED_CLIENTS = 4
  FEW_SHOT_EXAMPLES = 5

  def rng(self, seed: int, *place: int) -> np.random.Generator:
    """The generator; a `place` tells those of a stream apart."""
    return np.random.default_rng([seed, self, *place])

  def choose(self, seed: int, ids: Sequence[str], number: int) -> list[str]:
    """Draws ids without replacement; they keep their order."""
    chosen = self.rng(seed).choice(len(ids), number, replace=False)
    return [ids[i] for i in sorted(chosen)]


def run_in_parts(
  evaluation: tff.Computation,
  weights: Any,
  clients: Iterable[Any],
  total: int,
  name: str,
) -> list[Mapping[str, Any]]:
  """The results of `total` clients, some at a time, with a bar of devices.

  `clients` gives the data of each when its turn comes.
  """
  results: list[Mapping[str, Any]] = []
  rest = iter(tqdm.tqdm(clients, name, total, unit='device'))
  while part := list(itertools.islice(rest, _CLIENTS_PER_CALL)):
    results += evaluation(weights, part)
  return results


def _validation(data: ClientData, period: int) -> tuple[ClientData, ClientData]:
  """Splits training data: each `period`-th example is for validation."""

  def training(examples: tf.data.Dataset) -> tf.data.Dataset:
    parts = [examples.shard(period, i) for i in range(period - 1)]
    return functools.reduce(tf.data.Dataset.concatenate, parts)

  def validation(examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples.shard(period, period - 1)

  return data.preprocess(training), data.preprocess(validation)


class Experiment:
  """A task, split over clients, and a method, as the resolved settings say.

  Attributes:
    held_out_clients: The ids of the clients that never take part in training.
    training_clients: The ids of the clients that can take part, in order.
  """

  def __init__(self, settings: settings_lib.Settings):
    """Loads the data and splits them."""
    self.settings = s = settings
    self.task = catalog.load(s.task, s.data_dir)
    self.correction = methods.build('correction', s)
    self.personalization = methods.build('personalization', s)
    self.personalization_in_tests = self.personalization
    if s.tested_personalization:
      self.personalization_in_tests = methods.build('tested_personalization', s)
    self.train_data, self.test_data = self._split()
    if s.validation_share:
      self.train_data, self.test_data = _validation(
        self.train_data, round(1 / s.validation_share)
      )
    ids = self.train_data.client_ids
    self._places = {id_: place for place, id_ in enumerate(ids)}
    self.held_out_clients = Stream.HELD_OUT_CLIENTS.choose(
      s.seed, ids, s.num_held_out
    )
    held_out = set(self.held_out_clients)
    self.training_clients = [i for i in ids if i not in held_out]
    self._sample = tff.simulation.build_uniform_sampling_fn(
      self.training_clients, random_seed=s.seed
    )

  def clients_until(self, round_num: int) -> set[str]:
    """The ids of the clients chosen in any round from 1 to `round_num`."""
    rounds = range(1, round_num + 1)
    size = self.settings.clients_per_round
    return set().union(*(self._sample(r, size) for r in rounds))

  def _split(self) -> tuple[ClientData, ClientData]:
    """Splits the examples over clients, or chooses users of the data set."""
    s, task = self.settings, self.task
    if s.partition != 'natural':
      split = getattr(partitions, s.partition)
      parameter = s.classes_per_client or s.concentration
      try:
        return split(task.train, task.test, s.num_clients, parameter, s.seed)
      except ValueError as e:
        raise errors.UserError(f'--partition={s.partition}: {e}') from e
    assert task.natural is not None  # By `Settings.resolve`.
    users = set.intersection(*(set(d.client_ids) for d in task.natural))
    ids = Stream.USERS.choose(s.seed, sorted(users), s.num_clients)
    train, test = (
      ClientData.from_clients_and_tf_fn(ids, data.serializable_dataset_fn)
      for data in task.natural
    )
    return train, test

  def build_keras_model(self) -> tf.keras.Model:
    """A new Keras model with the initial weights of the experiment."""
    s = self.settings
    tf.keras.utils.set_random_seed(s.seed)
    # With ALID a client labels its classes from 0.
    is_alid = s.partition == 'alid'
    num_outputs = s.classes_per_client if is_alid else self.task.num_classes
    if s.network is not None:
      return methods.call_own('network', s.network, num_outputs)
    return self.task.build_model(num_outputs)

  @functools.cached_property
  def model(self) -> tff_debias.Model:
    """The model with its loss and its metric, the accuracy."""
    client_id = self.train_data.client_ids[0]
    examples = self.train_data.create_tf_dataset_for_client(client_id)
    return networks.to_model(self.build_keras_model(), examples)

  def build_process(
    self, storage: tff_debias.ClientStorage
  ) -> tff.learning.templates.LearningProcess:
    """The learning process, with the clients' storage."""
    s, model = self.settings, self.model
    if s.jit_compile:  # XLA needs static shapes.
      spec = tf.nest.map_structure(
        lambda t: tf.TensorSpec([s.batch_size, *t.shape[1:]], t.dtype),
        model.input_spec,
      )
      model = dataclasses.replace(model, input_spec=spec)
    return tff_debias.build_learning_process(
      model,
      self.personalization,
      self.correction,
      learning_rate_fn=tff_debias.exponential_decay(
        s.learning_rate, s.learning_rate_decay
      ),
      weight_decay=s.weight_decay,
      max_grad_norm=s.max_grad_norm,
      num_clients=len(self.training_clients),
      storage=storage,
      track_all=s.evaluated_model == 'all',
      jit_compile=s.jit_compile,
    )

  def training_data(
    self, round_num: int
  ) -> list[tf.data.Dataset] | list[collections.OrderedDict[str, Any]]:
    """The `client_data` of a round, the same each time."""
    s = self.settings
    client_ids = self._sample(round_num, s.clients_per_round)
    datasets = [
      pipeline.training_dataset(
        self.train_data.create_tf_dataset_for_client(client_id),
        batch_size=s.batch_size,
        num_batches=s.local_steps * self.personalization.batches_per_step,
        seed=(s.seed, round_num, self._places[client_id]),
        augment=self.task.augment,
      )
      for client_id in client_ids
    ]
    if s.evaluated_model != 'all' and not self.correction.is_kept:
      return datasets  # Clients keep no state, and take part without ids.
    return [
      collections.OrderedDict(client_id=client_id, data=data)
      for client_id, data in zip(client_ids, datasets, strict=True)
    ]

  @functools.cached_property
  def evaluation_data(self) -> list[collections.OrderedDict[str, Any]]:
    """The data of the clients that are tested, the same clients each time.

    Held-out clients are not among them; those are for `tasks.evaluate`.
    """
    s = self.settings
    ids = self.training_clients
    if 0 < s.evaluation_clients < len(ids):
      ids = Stream.TESTED_CLIENTS.choose(s.seed, ids, s.evaluation_clients)
    clients = [self.client_data(id_) for id_ in ids]
    if s.validation_share and not any(c['test'].cardinality() for c in clients):
      raise errors.UserError(
        f'--validation_share={s.validation_share} must be larger: no client'
        ' has an example for validation.'
      )
    return clients

  def client_data(
    self, client_id: str
  ) -> collections.OrderedDict[str, tf.data.Dataset]:
    """The data of a client for the personalized test."""
    return collections.OrderedDict(
      (
        name,
        pipeline.test_dataset(
          data.create_tf_dataset_for_client(client_id), EVALUATION_BATCH_SIZE
        ),
      )
      for name, data in (('train', self.train_data), ('test', self.test_data))
    )

  def build_evaluation(self) -> tff.Computation:
    """The personalized test."""
    return tff_debias.build_personalized_evaluation(
      self.model,
      self.personalization_in_tests,
      max_grad_norm=self.max_grad_norm_in_tests,
    )

  def build_client_evaluation(
    self, personalization: tff_debias.Personalization
  ) -> tff.Computation:
    """A personalized test with a result for each client."""
    return tff_debias.build_client_evaluation(
      self.model, personalization, max_grad_norm=self.max_grad_norm_in_tests
    )

  def build_local_training(self, num_steps: int) -> tff.Computation:
    """The test of clients that train alone: MAML's steps are local training."""
    rate = self.settings.learning_rate
    return self.build_client_evaluation(tff_debias.Maml(num_steps, rate))

  @property
  def max_grad_norm_in_tests(self) -> float:
    """The bound of training or, without one, that of the personalization."""
    s = self.settings
    if s.tested_personalization is None or s.max_grad_norm < math.inf:
      return s.max_grad_norm
    defaults = catalog.defaults(s.task, s.correction, s.tested_personalization)
    return defaults['max_grad_norm']

  def evaluated_weights(self, process: Any, state: Any) -> Any:
    """The weights of the model that the settings say is evaluated."""
    if self.settings.evaluated_model == 'all':
      return tff_debias.get_all_model_weights(state)
    return process.get_model_weights(state)
