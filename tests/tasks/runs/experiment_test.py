import collections
import math
import string

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tasks import catalog
from tasks.catalog import digits
from tasks.catalog import networks
from tasks.catalog import task
from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
from tests.tasks import small_runs
import tff_debias


def users(names, num_examples):
  """Client data whose x says whose it is."""
  return tff.simulation.datasets.TestClientData(
    {
      name: collections.OrderedDict(
        x=np.full((num_examples, 3), ord(name[0]), np.float32),
        y=np.arange(num_examples, dtype=np.int32) % 2,
      )
      for name in names
    }
  )


def replace_digits(monkeypatch, made, **settings):
  """Puts another task in digits' place, with published defaults."""
  monkeypatch.setattr(digits, 'load', lambda *_: made)
  row = catalog.TASKS['digits']._replace(settings=settings)
  monkeypatch.setitem(catalog.TASKS, 'digits', row)


@pytest.fixture
def natural_task(monkeypatch):
  """Digits' place is taken by a task of seven users, one without a test."""
  made = task.Task(
    train=None,
    test=None,
    num_classes=2,
    build_model=lambda num_outputs: networks.mlp((3,), (4,), num_outputs),
    augment=None,
    natural=(users('gafbecd', 5), users('gafbec', 3)),
  )
  replace_digits(
    monkeypatch,
    made,
    partition='natural',
    num_clients=6,
    clients_per_round=2,
  )


@pytest.mark.parametrize('name', catalog.TASKS)
def test_a_task_has_defaults_without_data(name):
  settings = settings_lib.resolve(task=name)
  assert settings.clients_per_round <= settings.num_clients
  assert settings.changes() == {}
  assert settings.defaults()['rounds'] >= 100


def test_users_are_the_devices(natural_task):
  experiment = experiment_lib.Experiment(settings_lib.resolve())
  assert experiment.settings.partition == 'natural'
  assert 'its own users, 2 of 6 devices' in experiment.settings.title
  assert experiment.train_data.client_ids == list('abcefg')
  assert experiment.test_data.client_ids == list('abcefg')
  assert len(experiment.evaluation_data) == 6
  for name, data in zip('abcefg', experiment.evaluation_data, strict=True):
    for split, size in (('train', 5), ('test', 3)):
      batch = data[split].get_single_element()
      assert batch['x'].numpy().tolist() == [[ord(name)] * 3] * size
  for participant in experiment.training_data(3):
    for batch in participant['data']:
      assert np.all(batch['x'] == ord(participant['client_id']))


def test_some_users_are_drawn(natural_task):
  drawn = set()
  for seed in range(20):
    settings = settings_lib.resolve(seed=seed, num_clients=3)
    first, again = (experiment_lib.Experiment(settings) for _ in range(2))
    ids = first.train_data.client_ids
    assert ids == sorted(set(ids)) and len(ids) == 3
    assert ids == again.train_data.client_ids == first.test_data.client_ids
    drawn.update(ids)
  assert drawn == set('abcefg')


def test_data_are_raw_and_devices_of_many_sizes_fit_the_model(monkeypatch):
  x = np.random.default_rng(0).integers(0, 256, (83, 8, 8)).astype(np.uint8)
  y = (np.arange(83) % 10).astype(np.int32)
  made = task.Task(
    train=(x, y),
    test=(x, y),
    num_classes=10,
    build_model=lambda num_outputs: networks.mlp((8, 8), (4,), num_outputs),
    augment=None,
  )
  replace_digits(monkeypatch, made)
  experiment = experiment_lib.Experiment(
    settings_lib.resolve(num_clients=8, clients_per_round=2, batch_size=4)
  )
  spec = experiment.model.input_spec
  assert spec['x'] == tf.TensorSpec([None, 8, 8], tf.uint8)
  rows = {tuple(row.ravel()): label for row, label in zip(x, y, strict=True)}
  training = [batch for p in experiment.training_data(1) for batch in p['data']]
  tests = [
    batch
    for device in experiment.evaluation_data
    for data in device.values()
    for batch in data
  ]
  assert len({len(batch['y']) for batch in tests}) > 1
  for batch in training + tests:
    assert all(
      tensor_spec.is_compatible_with(tensor)
      for tensor_spec, tensor in zip(spec.values(), batch.values(), strict=True)
    )
    for image, label in zip(
      batch['x'].numpy(), batch['y'].numpy(), strict=True
    ):
      assert rows[tuple(image.ravel())] == label


@pytest.mark.parametrize(
  ('options', 'tested', 'bound'),
  [
    ({'method': 'fed_avg'}, tff_debias.Maml(1, 1.0), 10),
    ({'method': 'scaffold'}, tff_debias.Maml(1, 1.0), 10),
    ({'method': 'fed_avg', 'maml_steps': 2}, tff_debias.Maml(2, 1.0), 10),
    ({'method': 'fed_prox', 'max_grad_norm': 3.0}, tff_debias.Maml(1, 1.0), 3),
  ],
)
def test_training_without_personalization_is_tested_with_one(
  options, tested, bound
):
  experiment = small_runs.experiment(tested_personalization='maml', **options)
  assert experiment.personalization == tff_debias.NoPersonalization()
  assert experiment.personalization_in_tests == tested
  assert experiment.max_grad_norm_in_tests == bound
  assert experiment.settings.max_grad_norm == options.get(
    'max_grad_norm', math.inf
  )
  assert 'tested with MAML' in experiment.settings.title


def examples_of(data, client_id):
  return [
    (*e['x'].ravel(), e['y'])
    for e in data.create_tf_dataset_for_client(client_id).as_numpy_iterator()
  ]


def test_the_validation_examples_are_a_share_of_the_training_examples():
  everything = small_runs.experiment()
  split = small_runs.experiment(validation_share=0.2)
  for client_id in everything.train_data.client_ids:
    examples = examples_of(everything.train_data, client_id)
    assert examples_of(split.test_data, client_id) == examples[4::5]
    rest = [e for i, e in enumerate(examples) if i % 5 != 4]
    assert sorted(examples_of(split.train_data, client_id)) == sorted(rest)
    data = split.test_data.create_tf_dataset_for_client(client_id)
    assert data.cardinality() == len(examples) // 5
  assert (
    'validation' in split.settings.title
    and 'validation' not in everything.settings.title
  )


def test_a_small_user_keeps_its_examples_for_training(natural_task):
  def experiment(share):
    return experiment_lib.Experiment(
      settings_lib.resolve(validation_share=share)
    )

  (client_id, *_) = experiment(0.2).test_data.client_ids
  assert len(examples_of(experiment(0.2).test_data, client_id)) == 1
  assert len(examples_of(experiment(0.15).train_data, client_id)) == 5
  with pytest.raises(errors.UserError, match='must be larger: no client has'):
    experiment(0.15).evaluation_data  # noqa: B018


def test_runs_with_other_settings_have_other_names():
  given = [
    {},
    {'seed': 1},
    {'partition': 'acid'},
    {'method': 'per_fed_avg'},
    {'personalization': 'proto'},
    {'alpha': 0.02},
    {'alpha': 0.03},
    {'learning_rate': 0.2, 'local_steps': 3},
    {'correction': 'tff_debias:Dyn(alpha=0.02)'},
    {'correction': 'tff_debias:Dyn(alpha=0.03)'},
  ]
  names = [
    folder_lib.path_of(settings_lib.resolve(**options)) for options in given
  ]
  assert len(set(names)) == len(names)
  assert names[0] == 'runs/digits_alid_pfl_dyn_maml_seed0'
  assert names[5] == 'runs/digits_alid_pfl_dyn_maml_seed0_alpha=0.02'
  for name in names:
    assert set(name) <= set(string.ascii_letters + string.digits + '/_=.,+-')
  # The task's default is not named.
  same = settings_lib.resolve(num_clients=100)
  assert folder_lib.path_of(same) == names[0]


def test_held_out_clients_never_train():
  some = small_runs.experiment(held_out_share=0.3)
  held_out = set(some.held_out_clients)
  assert len(held_out) == 4
  trained = {
    client['client_id']
    for r in range(1, 60)
    for client in some.training_data(r)
  }
  assert trained == set(some.train_data.client_ids) - held_out
  assert len(some.evaluation_data) == 8
  assert (
    set(small_runs.experiment(held_out_share=0.3).held_out_clients) == held_out
  )
  assert (
    set(small_runs.experiment(held_out_share=0.3, seed=1).held_out_clients)
    != held_out
  )


def test_with_none_held_out_the_participants_are_as_ever():
  everyone = small_runs.experiment(held_out_share=0.0)
  ids = [f'client_{i:04d}' for i in range(12)]
  assert everyone.training_clients == ids
  sample = tff.simulation.build_uniform_sampling_fn(ids, random_seed=0)
  for r in (1, 7):
    participants = [d['client_id'] for d in everyone.training_data(r)]
    assert participants == sample(r, 2)
