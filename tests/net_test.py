"""Five rounds of every method on digits give the numbers that were stored.

`python -m tests.net_test` in a checkout stores them anew: only where an issue
says that a number changes.
"""

import csv
import dataclasses
import os
import pathlib
import sys
import tempfile

import numpy as np
import pytest

_STORED = pathlib.Path(__file__).with_name('net.npz')
_ROUNDS = 5
_METHODS = (
  'fed_avg',
  'per_fed_avg',
  'fed_prox',
  'fed_dyn',
  'pfl_dyn',
  'scaffold',
  'pfl_scaf',
)
_COLUMNS = {
  'loss': 'client_work/train/loss',
  'training_accuracy': 'client_work/train/accuracy',
  'accuracy': 'evaluation/by_client/accuracy/mean',
  'test_loss': 'evaluation/by_client/loss/mean',
  'update_norm': 'finalizer/update_norm',
  'correction_norm': 'finalizer/server_correction_norm',
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
  return settings_lib.Settings(
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


def _train(method, personalization, folder):
  """The weights of the meta-model, and the metrics of every round."""
  import tensorflow as tf

  from tasks.catalog import digits
  from tasks.runs import experiment as experiment_lib
  from tasks.runs import folder as folder_lib
  from tasks.runs import training

  load = digits.load
  digits.load = lambda *arguments: _balanced(load(*arguments))
  try:
    experiment = experiment_lib.Experiment(_settings(method, personalization))
  finally:
    digits.load = load
  run = folder_lib.RunFolder(os.path.join(folder, 'run'))
  training.run(experiment, run, _ROUNDS)
  weights = tf.keras.models.load_model(run.meta_model).get_weights()
  numbers = {'weights': np.concatenate([w.ravel() for w in weights])}
  with open(run.metrics) as file:
    rows = list(csv.DictReader(file))
  for name, column in _COLUMNS.items():
    values = [float(row[column]) for row in rows if row[column]]
    numbers[name] = np.array(values, np.float32)
  return numbers


@pytest.mark.slow
@pytest.mark.parametrize('personalization', ['maml', 'proto'])
@pytest.mark.parametrize('method', _METHODS)
def test_a_run_has_the_stored_numbers(method, personalization, tmp_path):
  numbers = _train(method, personalization, tmp_path)
  with np.load(_STORED) as stored:
    for name, values in numbers.items():
      key = f'{method}/{personalization}/{name}'
      np.testing.assert_allclose(
        values, stored[key], rtol=1e-5, atol=1e-5, err_msg=key
      )


def _store():
  numbers = {}
  for method in _METHODS:
    for personalization in ('maml', 'proto'):
      with tempfile.TemporaryDirectory() as folder:
        for name, values in _train(method, personalization, folder).items():
          numbers[f'{method}/{personalization}/{name}'] = values
  np.savez_compressed(_STORED, **numbers)


if __name__ == '__main__':
  sys.exit(_store())
