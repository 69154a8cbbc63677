"""The process in TFF's own loops, programs and forms, each as one writes it.

All train on the same participants, and end as `process.next` in a loop does.
"""

import asyncio
import collections

import numpy as np
import programs
import pytest
import small_models
import tensorflow_federated as tff

import tff_debias

IDS = ['a', 'b', 'c', 'd']
ROUNDS = [['a', 'b'], ['c', 'a'], ['b', 'd'], ['d', 'c'], ['a', 'd']]
CLIENT_DATA = small_models.linear_client_data(IDS).preprocess(
  lambda data: data.batch(4).repeat(2)
)


def client(client_id):
  return collections.OrderedDict(
    client_id=client_id,
    data=CLIENT_DATA.create_tf_dataset_for_client(client_id),
  )


def build(folder):
  process = tff_debias.build_pfl_dyn(
    small_models.linear_model(),
    tff_debias.Maml(num_steps=1, learning_rate=0.1),
    alpha=0.5,
    num_clients=4,
    storage=tff_debias.ClientStorage(folder / 'clients'),
    learning_rate=0.05,
  )
  return process, tff_debias.compose_with_client_data(process, CLIENT_DATA)


@pytest.fixture
def expected(runtime, tmp_path):
  process, _ = build(tmp_path / 'expected')
  state = process.initialize()
  for ids in ROUNDS:
    state = process.next(state, [client(i) for i in ids]).state
  return process.get_model_weights(state)


def assert_same(weights, expected, atol=0):
  for value, other in zip(weights.trainable, expected.trainable, strict=True):
    np.testing.assert_allclose(value, other, rtol=1e-6, atol=atol)
    assert np.abs(other).max() > 0.1


def test_run_training_process(expected, tmp_path):
  _, process = build(tmp_path)
  asyncio.set_event_loop(asyncio.new_event_loop())
  state = tff.simulation.run_training_process(
    process,
    training_selection_fn=lambda round_num: ROUNDS[round_num - 1],
    total_rounds=len(ROUNDS),
  )
  assert_same(process.get_model_weights(state), expected)


def state_manager(folder):
  return tff_debias.StorageStateManager(
    tff.program.FileProgramStateManager(folder / 'state'),
    tff_debias.ClientStorage(folder / 'clients'),
  )


def test_train_model_goes_on_from_a_checkpoint(expected, tmp_path):
  source = programs.data_source(ROUNDS, tff.FederatedType(np.str_, tff.CLIENTS))
  for num_rounds in 3, len(ROUNDS):
    _, process = build(tmp_path)
    state = programs.train_model(
      process, source, state_manager(tmp_path), num_rounds
    )
  assert_same(process.get_model_weights(state), expected)


def test_train_model_in_tffs_own_program_context(expected, tmp_path):
  source = programs.data_source(ROUNDS, tff.FederatedType(np.str_, tff.CLIENTS))
  _, process = build(tmp_path)
  state = programs.train_model(
    process,
    source,
    state_manager(tmp_path),
    len(ROUNDS),
    tff.program.NativeFederatedContext(tff_debias.runtime.AsyncLocalContext()),
  )
  assert_same(process.get_model_weights(state), expected)


def test_checkpoints_of_train_model_are_one_round_behind_at_most(
  runtime, tmp_path
):
  class Manager(tff_debias.StorageStateManager):
    async def save(self, program_state, version):
      await super().save(program_state, version)
      saved.append(version)

  class Ids(list):
    # TFF asks for the participants when a round begins.
    def __getitem__(self, i):
      behind.append(i - max(saved, default=0))
      return super().__getitem__(i)

  saved, behind = [], []
  process, _ = build(tmp_path)
  long = CLIENT_DATA.preprocess(lambda data: data.repeat(1000))
  process = tff_debias.compose_with_client_data(process, long)
  source = programs.data_source(
    Ids(ROUNDS), tff.FederatedType(np.str_, tff.CLIENTS)
  )
  manager = Manager(
    tff.program.FileProgramStateManager(tmp_path / 'state'),
    tff_debias.ClientStorage(tmp_path / 'clients'),
  )
  programs.train_model(process, source, manager, len(ROUNDS))
  assert len(behind) == len(ROUNDS) and max(behind) <= 1, (behind, saved)


def test_train_model_with_ids_chosen_at_random(runtime, tmp_path):
  _, process = build(tmp_path)
  state = programs.train_model(
    process, tff.program.ClientIdDataSource(IDS), state_manager(tmp_path), 3
  )
  assert np.abs(process.get_model_weights(state).trainable[0]).max() > 0.1


def test_the_steps_of_a_map_reduce_form(expected, tmp_path):
  process, _ = build(tmp_path)
  form = tff.backends.mapreduce.get_map_reduce_form_for_computation(
    process.next
  )
  state = process.initialize()
  for ids in ROUNDS:
    total, context = form.zero(), form.prepare(state)
    for client_id in ids:
      # `work` gives four kinds of updates: to be summed, and to be summed in
      # three secure ways, which are empty here.
      update, *secure = form.work(client(client_id), context)
      assert not any(secure)
      total = form.accumulate(total, update)
    state, _ = form.update(state, (form.report(total), (), (), ())).values()
  assert_same(process.get_model_weights(state), expected, atol=1e-7)


def test_the_distribute_aggregate_form_exists(tmp_path):
  process, _ = build(tmp_path)
  form = tff.backends.mapreduce.get_distribute_aggregate_form_for_computation(
    process.next
  )
  assert isinstance(form, tff.backends.mapreduce.DistributeAggregateForm)
