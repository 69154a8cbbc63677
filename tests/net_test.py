"""Five rounds of every method on digits give the numbers that were stored.

`python -m tests.net_test` in a checkout stores them anew: only where an issue
says that a number changes.
"""

import contextlib
import csv
import dataclasses
import functools
import os
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
  'loss': 'client_work/train/loss',
  'training_accuracy': 'client_work/train/accuracy',
  'update_norm': 'finalizer/update_norm',
  'correction_norm': 'finalizer/server_correction_norm',
}
_TEST_COLUMNS = {
  'accuracy': 'by_client/accuracy/mean',
  'test_loss': 'by_client/loss/mean',
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
  import tensorflow as tf

  from tasks.runs import folder as folder_lib
  from tasks.runs import training

  def test(weights, data):
    return {p: build_test(p)(weights, data) for p in personalizations}

  experiment = _experiment(method, personalizations[0])
  experiment.build_evaluation = lambda: test
  run = folder_lib.RunFolder(os.path.join(folder, 'run'))
  training.run(experiment, run, _ROUNDS)
  weights = tf.keras.models.load_model(run.meta_model).get_weights()
  weights = np.concatenate([w.ravel() for w in weights])
  with open(run.metrics) as file:
    rows = list(csv.DictReader(file))
  numbers = {}
  for p in personalizations:
    numbers[f'{method}/{p}/weights'] = weights
    tests = {n: f'evaluation/{p}/{c}' for n, c in _TEST_COLUMNS.items()}
    for name, column in (_COLUMNS | tests).items():
      values = [float(row[column]) for row in rows if row[column]]
      numbers[f'{method}/{p}/{name}'] = np.array(values, np.float32)
  return numbers


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'personalizations'), _RUNS)
def test_a_run_has_the_stored_numbers(
  method, personalizations, build_test, tmp_path, runtime, monkeypatch
):
  from tasks.runs import training

  # The context of the tests keeps the compiled test.
  monkeypatch.setattr(training.runtime, 'local_context', contextlib.nullcontext)
  numbers = _train(method, personalizations, build_test, tmp_path)
  with np.load(_STORED) as stored:
    for key, values in numbers.items():
      np.testing.assert_allclose(
        values, stored[key], rtol=1e-5, atol=1e-5, err_msg=key
      )


def _store():
  numbers = {}
  for method, personalizations in _RUNS:
    with tempfile.TemporaryDirectory() as folder:
      numbers |= _train(method, personalizations, _build_test, folder)
  np.savez_compressed(_STORED, **numbers)


if __name__ == '__main__':
  sys.exit(_store())
