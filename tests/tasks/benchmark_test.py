import collections
import functools

import numpy as np
import pytest
import tensorflow as tf

from tasks import benchmark
from tasks.catalog import networks
import tff_debias


@pytest.mark.slow
def test_the_bare_loop_does_the_same_work(runtime):
  tf.keras.utils.set_random_seed(1)
  shape = (16, 16, 1)
  keras_model = networks.cnn(
    shape,
    num_outputs=3,
    scaling=tf.keras.layers.Rescaling(1 / 255),
    hidden_sizes=(8, 6),
  )
  rng = np.random.default_rng(2)
  examples = tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict(
      x=rng.integers(0, 256, (24, *shape), np.uint8),
      y=rng.integers(0, 3, 24, np.int32),
    )
  )
  model = networks.to_model(keras_model, examples)
  batches = examples.batch(6, drop_remainder=True)
  process = tff_debias.build_learning_process(
    model,
    tff_debias.NoPersonalization(),
    tff_debias.NoCorrection(),
    learning_rate=benchmark._LEARNING_RATE,
    weight_decay=benchmark._WEIGHT_DECAY,
    max_grad_norm=benchmark._MAX_GRAD_NORM,
  )
  state = process.next(process.initialize(), [batches]).state
  start = keras_model.get_weights()
  train = benchmark.build_bare_training(keras_model)
  train(batches)
  found = train(batches)  # It starts anew.
  expected = process.get_model_weights(state).trainable
  for own, new in zip(found, expected, strict=True):
    np.testing.assert_allclose(own, new, atol=2e-6)
  moved = [np.abs(o - w).max() for o, w in zip(found, start, strict=True)]
  assert max(moved) > 1e-4


def test_methods_run_in_turn_after_one_run_each():
  order = []
  rounds = {name: lambda name=name: order.append(name) for name in 'ab'}
  seconds = benchmark.measure(rounds, repetitions=2, in_a_row=2)
  assert ''.join(order) == 3 * 'aabb'
  assert {name: len(values) for name, values in seconds.items()} == {
    'a': 2,
    'b': 2,
  }


def test_a_ratio_is_of_the_same_repetition():
  bare = f'plain: {benchmark._BARE}'
  row, _ = benchmark.to_rows(
    {'plain: a': [1.0, 4.0, 3.0], bare: [2.0, 2.0, 1.0]}
  )
  # The median of 1/2, 4/2 and 3/1; that of the medians would be 1.5.
  assert list(row.values()) == ['plain: a', '3', '1 … 4', '2.00', '']


@pytest.mark.slow
def test_the_program_measures_every_method(tmp_path, monkeypatch):
  small = functools.partial(networks.mlp, hidden_sizes=(4,))
  monkeypatch.setattr(networks, 'cnn', small)
  flags = ['--case=plain', '--clients_per_round=1', '--local_steps=1']
  flags += ['--batch_size=2', '--repetitions=1', f'--output_dir={tmp_path}']
  benchmark.prepare(flags)()
  report = (tmp_path / 'benchmark.md').read_text()
  for name in ('uncorrected', 'Dyn', 'Scaf', benchmark._BARE, benchmark._TFF):
    assert f'| plain: {name} ' in report
