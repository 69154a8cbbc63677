"""Five rounds of every method on digits give the numbers that were stored.

`python -m tests.net_test` in a checkout stores them anew: only where an issue
says that a number changes.
"""

import collections
import dataclasses
import functools
import pathlib
import sys
import tempfile

import numpy as np
import pytest

_STORED = pathlib.Path(__file__).with_name('net.npz')
_ROUNDS = 5
_BOTH = ('maml', 'proto')
# The methods with the personalizations of a run. One that trains without a
# personalization is tested with both.
_RUNS = (
  *((method, _BOTH) for method in ('fed_avg', 'fed_prox', 'fed_dyn')),
  ('scaffold', _BOTH),
  *(
    (method, (personalization,))
    for method in ('per_fed_avg', 'pfl_dyn', 'pfl_scaf')
    for personalization in _BOTH
  ),
)
_COLUMNS = {
  'loss': ('client_work', 'train', 'loss'),
  'training_accuracy': ('client_work', 'train', 'accuracy'),
  'update_norm': ('finalizer', 'update_norm'),
  'correction_norm': ('finalizer', 'server_correction_norm'),
}
_TEST_COLUMNS = {
  'accuracy': ('accuracy', 'mean'),
  'test_loss': ('loss', 'mean'),
}


def _balanced(task):
  """The task with equally many examples of each class.

  So every client has equally many of each of its classes, however a partition
  shares out what does not divide.
  """

  def first(examples, number):
    x, labels = examples
    chosen = [np.flatnonzero(labels == c)[:number] for c in range(10)]
    chosen = np.sort(np.concatenate(chosen))
    return x[chosen], labels[chosen]

  return dataclasses.replace(
    task, train=first(task.train, 112), test=first(task.test, 32)
  )


def _settings(method, personalization):
  from tasks.runs import settings as settings_lib

  personalizes = method in ('per_fed_avg', 'pfl_dyn', 'pfl_scaf')
  which = 'personalization' if personalizes else 'tested_personalization'
  options = {which: personalization}
  if personalization == 'maml':
    options |= {'maml_steps': 2, 'maml_learning_rate': 0.05}
  if method in ('fed_dyn', 'pfl_dyn'):
    options['alpha'] = 0.3
  if method == 'fed_prox':
    options['mu'] = 0.2
  return settings_lib.resolve(
    task='digits',
    method=method,
    partition='acid',
    num_clients=20,
    classes_per_client=4,
    clients_per_round=6,
    local_steps=4,
    batch_size=7,
    learning_rate=0.1,
    learning_rate_decay=0.99,
    weight_decay=0.001,
    max_grad_norm=10.0,
    evaluation_clients=0,
    rounds_per_evaluation=2,
    seed=3,
    **options,
  )


def _experiment(method, personalization):
  from tasks.catalog import digits
  from tasks.runs import experiment as experiment_lib

  load = digits.load
  digits.load = lambda *arguments: _balanced(load(*arguments))
  try:
    return experiment_lib.Experiment(_settings(method, personalization))
  finally:
    digits.load = load


def _build_test(personalization):
  """The test of a personalization, the same for each method."""
  return _experiment('fed_avg', personalization).build_evaluation()


@pytest.fixture(scope='module')
def build_test():
  return functools.cache(_build_test)


def _train(method, personalizations, build_test, folder):
  """The weights of the meta-model, and the metrics of every round."""
  import tff_debias

  experiment = _experiment(method, personalizations[0])
  process = experiment.build_process(tff_debias.ClientStorage(folder))
  state, numbers = process.initialize(), collections.defaultdict(list)

  def note(columns, metrics, prefix):
    for name, column in columns.items():
      value = functools.reduce(lambda part, key: part[key], column, metrics)
      numbers[f'{prefix}/{name}'].append(float(value))

  def test():
    weights = process.get_model_weights(state)
    for p in personalizations:
      result = build_test(p)(weights, experiment.evaluation_data)
      note(_TEST_COLUMNS, result['by_client'], f'{method}/{p}')
    return weights.trainable

  test()
  for t in range(1, _ROUNDS + 1):
    state, metrics = process.next(state, experiment.training_data(t))
    for p in personalizations:
      note(_COLUMNS, metrics, f'{method}/{p}')
    if t % 2 == 0 or t == _ROUNDS:
      weights = test()
  for p in personalizations:
    numbers[f'{method}/{p}/weights'] = np.concatenate(
      [w.ravel() for w in weights]
    )
  return {name: np.array(n, np.float32) for name, n in numbers.items()}


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'personalizations'), _RUNS)
def test_a_run_has_the_stored_numbers(
  method, personalizations, build_test, tmp_path, runtime
):
  numbers = _train(method, personalizations, build_test, tmp_path)
  with np.load(_STORED) as stored:
    for key, values in numbers.items():
      np.testing.assert_allclose(
        values, stored[key], rtol=1e-5, atol=1e-5, err_msg=key
      )


def _store():
  from tff_debias import runtime

  numbers = {}
  runtime.start_local_context()
  for method, personalizations in _RUNS:
    with tempfile.TemporaryDirectory() as folder:
      numbers |= _train(method, personalizations, _build_test, folder)
  np.savez_compressed(_STORED, **numbers)


if __name__ == '__main__':
  sys.exit(_store())
