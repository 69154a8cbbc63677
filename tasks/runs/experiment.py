"""Makes an experiment of its settings: data, model and learning process."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
import enum
import functools
import hashlib
import math
import re
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tasks import catalog
from tasks.catalog import networks
from tasks.readers import files
from tasks.runs import components
from tasks.runs import errors
from tasks.runs import pipeline
from tasks.runs import settings as settings_lib
import tff_debias
from tff_debias import partitions

ClientData = tff.simulation.datasets.ClientData

#: The examples in a batch of a test, or of a check.
EVALUATION_BATCH_SIZE = 500

_MAX_NAME_LENGTH = 100


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


def resolve(settings: settings_lib.Settings) -> settings_lib.Settings:
  """The settings, with the task's defaults for those that are `None`."""
  return settings.resolve(_defaults(settings))


def default_rounds(settings: settings_lib.Settings) -> int:
  """The number of rounds if none is given."""
  return _defaults(settings)['rounds']


def _defaults(settings: settings_lib.Settings) -> dict[str, Any]:
  """The task's defaults; those of MAML's steps are for the tests, too."""
  defaults = catalog.module_of(settings.task).defaults
  training, tests = (
    defaults(settings.correction, personalization)
    for personalization in (
      settings.personalization,
      settings.personalization_in_tests,
    )
  )
  return {
    name: (tests if name.startswith('maml_') else training)[name]
    for name in training
  }


def changes(settings: settings_lib.Settings) -> dict[str, Any]:
  """The resolved settings that are not the defaults of task and method.

  What names a run anyway, as its method and its seed, is not among them, nor is
  the folder of the data.
  """
  main = ('task', 'partition', 'method', 'correction', 'personalization')
  main += ('tested_personalization',)
  plain = resolve(
    settings_lib.Settings(**{k: getattr(settings, k) for k in main})
  )
  return {
    name: value
    for name, value in vars(settings).items()
    if name not in (*main, 'seed', 'data_dir') and value != vars(plain)[name]
  }


def assignments(values: Mapping[str, Any]) -> list[str]:
  """Settings as parts of a name, NAME=VALUE."""
  return [f'{name}={value}' for name, value in values.items()]


def folder_name(parts: Iterable[str]) -> str:
  """The parts as a name of a folder; a long one has a hash for its end."""
  # Such characters have a meaning in a shell or in TensorFlow's file names.
  name = re.sub(r'[^\w.,=+-]+', '-', '_'.join(parts))
  if len(name) <= _MAX_NAME_LENGTH:
    return name
  hashed = hashlib.sha256(name.encode()).hexdigest()[:8]
  return f'{name[: _MAX_NAME_LENGTH - 9]}_{hashed}'


def _validation(data: ClientData, period: int) -> tuple[ClientData, ClientData]:
  """Splits training data: each `period`-th example is for validation."""
  shards = tf.data.Dataset.shard

  def training(client_id: str) -> tf.data.Dataset:
    examples = data.serializable_dataset_fn(client_id)
    parts = [shards(examples, period, i) for i in range(period - 1)]
    return functools.reduce(tf.data.Dataset.concatenate, parts)

  def validation(client_id: str) -> tf.data.Dataset:
    return shards(data.serializable_dataset_fn(client_id), period, period - 1)

  return tuple(
    ClientData.from_clients_and_tf_fn(data.client_ids, examples_of)
    for examples_of in (training, validation)
  )


class Experiment:
  """A task, split over clients, and a method, as the resolved settings say."""

  def __init__(self, settings: settings_lib.Settings):
    """Loads the data and splits them; settings that are `None` get defaults."""
    self.task = catalog.module_of(settings.task).load(settings.data_dir)
    self.settings = resolve(settings)
    self.correction = components.build('correction', self.settings)
    self.personalization = components.build('personalization', self.settings)
    self.personalization_in_tests = self.personalization
    if self.settings.tested_personalization is not None:
      self.personalization_in_tests = components.build(
        'tested_personalization', self.settings
      )
    self._check_clients_per_round()
    self.train_data, self.test_data = self._split()
    if self._validation_period:
      self.train_data, self.test_data = _validation(
        self.train_data, self._validation_period
      )
    if self.settings.partition in ('acid', 'dirichlet'):
      self._check_arrays()

  @property
  def name(self) -> str:
    """A name of the run, which tells it from runs with other settings."""
    s = self.settings
    parts = [s.task, s.partition, *s.method_names, f'seed{s.seed}']
    return folder_name([*parts, *assignments(changes(s))])

  @property
  def _validation_period(self) -> int:
    """n, if every n-th training example is for validation; 0 for none."""
    share = self.settings.validation_share
    return round(1 / share) if share else 0

  def _check_clients_per_round(self) -> None:
    s = self.settings
    if s.clients_per_round > s.num_clients - s.num_held_out:
      held_out = f' less the {s.num_held_out} of --held_out_share'
      raise errors.UserError(
        f'--clients_per_round={s.clients_per_round} must be at most'
        f' --num_clients={s.num_clients}{held_out * (s.held_out_share > 0)}.'
      )

  @functools.cached_property
  def held_out_clients(self) -> list[str]:
    """The ids of the clients that never take part in training."""
    ids = self.train_data.client_ids
    rng = Stream.HELD_OUT_CLIENTS.rng(self.settings.seed)
    chosen = rng.choice(len(ids), self.settings.num_held_out, replace=False)
    return [ids[i] for i in sorted(chosen)]

  @functools.cached_property
  def training_clients(self) -> list[str]:
    """The ids of the clients that can take part, in order."""
    held_out = set(self.held_out_clients)
    return [i for i in self.train_data.client_ids if i not in held_out]

  def clients_until(self, round_num: int) -> set[str]:
    """The ids of the clients chosen in any round from 1 to `round_num`."""
    rounds = range(1, round_num + 1)
    size = self.settings.clients_per_round
    return set().union(*(self._sample(r, size) for r in rounds))

  def _split(self) -> tuple[ClientData, ClientData]:
    s = self.settings
    if s.partition == 'natural':
      return self._choose_users()
    if self.task.train is None:
      raise errors.UserError(
        f'--partition={s.partition} does not go with --task={s.task}, whose'
        ' data are split over its own users: take --partition=natural.'
      )
    split = getattr(partitions, s.partition)
    parameter = s.classes_per_client or s.concentration
    return split(
      self.task.train, self.task.test, s.num_clients, parameter, s.seed
    )

  def _choose_users(self) -> tuple[ClientData, ClientData]:
    """Chooses `num_clients` of the data set's users at random."""
    s = self.settings
    if self.task.natural is None:
      raise errors.UserError(
        f'--partition=natural does not go with --task={s.task}, whose data have'
        ' no users: take --partition=acid, alid or dirichlet.'
      )
    users = set.intersection(*(set(d.client_ids) for d in self.task.natural))
    if s.num_clients > len(users):
      raise errors.UserError(
        f'--num_clients={s.num_clients} must be at most {len(users)}, the'
        f' number of users in {s.task}.'
      )
    for user in users:
      # NumPy, in which TFF sends ids, would drop the end: another user's id.
      if not user or user.endswith('\0'):
        raise files.DataError(
          f'The user {user!r} of {s.task} must have an id that is not empty and'
          ' does not end with a null character.'
        )
    users = sorted(users)
    rng = Stream.USERS.rng(s.seed)
    chosen = rng.choice(len(users), s.num_clients, replace=False)
    return tuple(
      ClientData.from_clients_and_tf_fn(
        [users[i] for i in sorted(chosen)], data.serializable_dataset_fn
      )
      for data in self.task.natural
    )

  def _check_arrays(self) -> None:
    """Finds a label out of range now; the users' are checked when read."""
    sources = (self.task.train, self.task.test)
    if self._validation_period:
      sources = (self.task.train, self.task.train)
    data_sets = (self.train_data, self.test_data)
    for examples, data in zip(sources, data_sets, strict=True):
      if examples[1].max() >= self.num_outputs:
        for client_id in data.client_ids:
          self._check_labels(
            client_id, data.create_tf_dataset_for_client(client_id)
          )

  def _examples(self, data: ClientData, client_id: str) -> tf.data.Dataset:
    """The examples of a client, whose labels are in range."""
    dataset = data.create_tf_dataset_for_client(client_id)
    if self.settings.partition == 'natural':
      self._check_labels(client_id, dataset)
    return dataset

  def _check_labels(self, client_id: str, dataset: tf.data.Dataset) -> None:
    """Raises a `DataError` if a label of a client is out of range."""
    for batch in dataset.batch(EVALUATION_BATCH_SIZE):
      for label in batch['y'].numpy():
        if not 0 <= label < self.num_outputs:
          raise files.DataError(
            f'The client {client_id} has the label {label}, but those of'
            f' {self.settings.task} must be from 0 to {self.num_outputs - 1}.'
          )

  @functools.cached_property
  def num_outputs(self) -> int:
    """The network's outputs: all classes, or with ALID those of a client."""
    if self.settings.partition == 'alid':
      return self.settings.classes_per_client
    return self.task.num_classes

  def build_keras_model(self) -> tf.keras.Model:
    """A new Keras model with the initial weights of the experiment."""
    tf.keras.utils.set_random_seed(self.settings.seed)
    return self.task.build_model(self.num_outputs)

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
    s = self.settings
    return tff_debias.build_learning_process(
      self.model,
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
    )

  def training_data(
    self, round_num: int
  ) -> list[tf.data.Dataset] | list[collections.OrderedDict[str, Any]]:
    """The `client_data` of a round, the same each time."""
    s = self.settings
    client_ids = self._sample(round_num, s.clients_per_round)
    datasets = [
      pipeline.training_dataset(
        self._examples(self.train_data, client_id),
        batch_size=s.batch_size,
        num_batches=s.local_steps * self.personalization.batches_per_step,
        seed=(s.seed, round_num, self._places[client_id]),
        augment=self.task.augment,
      )
      for client_id in client_ids
    ]
    if not self.keeps_state:
      return datasets
    return [
      collections.OrderedDict(client_id=client_id, data=data)
      for client_id, data in zip(client_ids, datasets, strict=True)
    ]

  @functools.cached_property
  def keeps_state(self) -> bool:
    """Whether clients keep a state, and so take part with their ids."""
    weights = self.model.initial_weights.trainable
    return self.settings.evaluated_model == 'all' or bool(
      self.correction.initial_state(weights)
    )

  @functools.cached_property
  def _places(self) -> dict[str, int]:
    return {id_: place for place, id_ in enumerate(self.train_data.client_ids)}

  @functools.cached_property
  def _sample(self):
    return tff.simulation.build_uniform_sampling_fn(
      self.training_clients, random_seed=self.settings.seed
    )

  @functools.cached_property
  def evaluation_data(self) -> list[collections.OrderedDict[str, Any]]:
    """The data of the clients that are tested, the same clients each time.

    Held-out clients are not among them; those are for `tasks.evaluate`.
    """
    s = self.settings
    ids = self.training_clients
    chosen = np.arange(len(ids))
    if 0 < s.evaluation_clients < len(ids):
      rng = Stream.TESTED_CLIENTS.rng(s.seed)
      chosen = rng.choice(len(ids), s.evaluation_clients, replace=False)
    clients = [self.client_data(ids[i]) for i in sorted(chosen)]
    if self._validation_period and all(
      client['test'].cardinality() == 0 for client in clients
    ):
      raise errors.UserError(
        f'No client has {self._validation_period} examples, of which one would'
        f' be for validation: --validation_share={s.validation_share} must be'
        ' larger.'
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
          self._examples(data, client_id), EVALUATION_BATCH_SIZE
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

  @property
  def max_grad_norm_in_tests(self) -> float:
    """The bound of training or, without one, that of the personalization."""
    s = self.settings
    if s.tested_personalization is None or s.max_grad_norm < math.inf:
      return s.max_grad_norm
    defaults = catalog.module_of(s.task).defaults
    return defaults(s.correction, s.tested_personalization)['max_grad_norm']

  def evaluated_weights(self, process: Any, state: Any) -> Any:
    """The weights of the model that the settings say is evaluated."""
    if self.settings.evaluated_model == 'all':
      return tff_debias.get_all_model_weights(state)
    return process.get_model_weights(state)
