import collections

import numpy as np
import pytest
import tensorflow as tf

from tasks.catalog import images
from tasks.runs import errors
from tasks.runs import pipeline


def device(num_examples, shape=(3,)):
  """A device's examples; the label is the example's own number."""
  y = np.arange(num_examples, dtype=np.int32)
  x = np.random.default_rng(0).normal(size=(num_examples, *shape))
  return tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict(x=x.astype(np.float32), y=y)
  )


def labels(dataset):
  return np.array([batch['y'] for batch in dataset.as_numpy_iterator()])


def serialized(dataset):
  """What TFF sends to a worker."""
  return tf.raw_ops.DatasetToGraphV2(
    input_dataset=tf.data.experimental.to_variant(dataset)
  )


def add_seed(x, seed):
  return x + tf.cast(seed[0], tf.float32)


@pytest.mark.parametrize(
  'num_examples, batch_size, num_batches',
  [(30, 10, 9), (29, 10, 20), (7, 10, 20), (1, 4, 3), (30, 7, 1), (500, 50, 4)],
)
def test_each_epoch_is_a_permutation_and_all_batches_are_full(
  num_examples, batch_size, num_batches
):
  source = device(num_examples)
  dataset = pipeline.training_dataset(source, batch_size, num_batches, (0, 1))
  assert dataset.element_spec == collections.OrderedDict(
    x=tf.TensorSpec([batch_size, 3], tf.float32),
    y=tf.TensorSpec([batch_size], tf.int32),
  )
  assert dataset.cardinality() == num_batches
  batches = list(dataset.as_numpy_iterator())
  assert len(batches) == num_batches
  x = np.concatenate([batch['x'] for batch in batches])
  y = np.concatenate([batch['y'] for batch in batches])
  true_x = np.array([example['x'] for example in source.as_numpy_iterator()])
  assert np.array_equal(x, true_x[y])
  epochs = [
    y[start : start + num_examples] for start in range(0, len(y), num_examples)
  ]
  for epoch in epochs[:-1]:
    assert np.array_equal(np.sort(epoch), np.arange(num_examples))
  assert len(set(epochs[-1])) == len(epochs[-1])
  if num_examples > 20:
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_the_seed_decides():
  def order(*seed, augment=None):
    return labels(
      pipeline.training_dataset(device(40), 8, 10, seed, augment=augment)
    ).tolist()

  first = order(1, 2, 3)
  assert first == order(1, 2, 3)
  assert first == order(1, 2, 3, augment=add_seed)
  for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)):
    assert first != order(*other)


def test_iterates_alike_each_time_and_after_serialization():
  augment = images.random_crop_and_flip()
  dataset = pipeline.training_dataset(
    device(40, (8, 8, 1)), 8, 10, (1, 2, 3), augment
  )
  received = tf.data.experimental.from_variant(
    tf.raw_ops.DatasetFromGraph(graph_def=serialized(dataset)),
    dataset.element_spec,
  )
  first = list(dataset.as_numpy_iterator())
  for other in (dataset, received):
    for one, two in zip(first, other.as_numpy_iterator(), strict=True):
      assert np.array_equal(one['x'], two['x'])
      assert np.array_equal(one['y'], two['y'])


def test_augmentation_gets_a_fresh_seed_for_each_batch():
  source = device(20)
  plain = pipeline.training_dataset(source, 5, 12, (0, 0, 0))
  augmented = pipeline.training_dataset(
    source, 5, 12, (0, 0, 0), augment=add_seed
  )
  shifts = []
  for one, two in zip(plain, augmented, strict=True):
    shift = np.unique(np.round(two['x'] - one['x'], -3))
    assert len(shift) == 1
    assert np.array_equal(one['y'], two['y'])
    shifts += shift.tolist()
  assert len(set(shifts)) == 12
  other = pipeline.training_dataset(source, 5, 12, (0, 1, 0), add_seed)
  assert not np.isin(np.round(next(iter(other))['x'], -3), shifts).any()


def test_takes_a_dataset_of_unknown_length():
  source = device(20)
  unknown = source.filter(lambda example: example['y'] < 10)
  assert unknown.cardinality() == tf.data.UNKNOWN_CARDINALITY
  batches = labels(pipeline.training_dataset(unknown, 10, 3, 0))
  assert np.array_equal(np.sort(batches, axis=1), [np.arange(10)] * 3)


def test_devices_of_many_sizes_share_a_few_traces():
  traces = []

  def augment(x, seed):
    traces.append(x.shape)
    return x

  for num_examples in range(20, 30):
    pipeline.training_dataset(device(num_examples), 4, 5, 0, augment)
  assert len(traces) <= 3
  assert set(traces) == {tf.TensorShape([4, 3])}


def test_devices_of_another_task_keep_their_shape():
  for shape in ((3,), (4,), (8, 8, 1), (5, 5)):
    dataset = pipeline.training_dataset(device(9, shape), 4, 2, 0, add_seed)
    assert dataset.element_spec['x'].shape == (4, *shape)


def test_what_is_sent_is_small():
  source = device(500, (28, 28, 1)).map(
    lambda example: {**example, 'x': tf.cast(example['x'], tf.uint8)}
  )
  augment = images.random_crop_and_flip()
  dataset = pipeline.training_dataset(source, 50, 100, 0, augment)
  graph = serialized(dataset).numpy()
  assert len(tf.compat.v1.GraphDef.FromString(graph).node) <= 8
  # The device's bytes once, although the batches hold them ten times over; and
  # the order.
  assert len(graph) < 1.05 * (500 * (28 * 28 + 4) + 4 * 50 * 100)
  assert dataset.element_spec['x'] == tf.TensorSpec([50, 28, 28, 1], tf.uint8)


def test_a_small_device_is_sent_as_its_batches(monkeypatch):
  def graph():
    dataset = pipeline.training_dataset(device(40), 8, 10, 5)
    nodes = tf.compat.v1.GraphDef.FromString(serialized(dataset).numpy())
    return list(dataset.as_numpy_iterator()), {node.op for node in nodes.node}

  small, operations = graph()
  assert 'MapDataset' not in operations
  monkeypatch.setattr(pipeline, '_SMALL_BYTES', 0)
  large, operations = graph()
  assert 'MapDataset' in operations
  for one, other in zip(small, large, strict=True):
    assert np.array_equal(one['x'], other['x'])
    assert np.array_equal(one['y'], other['y'])


def test_batches_for_a_test_hold_each_example_once():
  for num_examples in (0, 1, 9, 10, 11, 25):
    source = device(num_examples)
    for dataset in (source, source.filter(lambda example: True)):
      batches = list(pipeline.test_dataset(dataset, 10).as_numpy_iterator())
      assert [len(b['y']) for b in batches[:-1]] == [10] * (len(batches) - 1)
      found = [y for b in batches for y in b['y']]
      assert found == list(range(num_examples))
      true_x = [example['x'] for example in source.as_numpy_iterator()]
      x = [row for b in batches for row in b['x']]
      assert np.array_equal(x, true_x)


def test_a_device_without_examples_is_an_error():
  with pytest.raises(errors.UserError, match='no example to train on'):
    pipeline.training_dataset(device(0), 1, 1, (0, 0, 0))
