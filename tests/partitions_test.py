import collections
import hashlib

import numpy as np
import pytest
from sklearn import datasets
import tensorflow as tf

from tff_debias import partitions

# Examples of each class in scikit-learn's digits, and an even data set.
DIGITS = np.bincount(datasets.load_digits().target)
EVEN = np.full(10, 60)


def make_set(counts, seed=0):
  """Examples that carry their own index, so that each can be recognized."""
  y = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
  np.random.default_rng(seed).shuffle(y)
  return np.arange(len(y), dtype=np.float32), y


def read(client_data):
  """For each client the indices of its examples and its labels."""
  clients = []
  for client_id in client_data.client_ids:
    dataset = client_data.create_tf_dataset_for_client(client_id)
    examples = dataset.batch(10**6).get_single_element()
    clients.append((examples['x'].numpy().astype(int), examples['y'].numpy()))
  return clients


def digest(*split):
  """The first digits of the SHA-256 of all ids, indices and labels."""
  digest = hashlib.sha256()
  for client_data in split:
    for i, (indices, labels) in enumerate(read(client_data)):
      digest.update(client_data.client_ids[i].encode())
      digest.update(indices.astype('<i4').tobytes())
      digest.update(labels.astype('<i4').tobytes())
  return digest.hexdigest()[:16]


def check_exactly_once(clients, num_examples, num_clients):
  assert len(clients) == num_clients
  together = np.concatenate([indices for indices, _ in clients])
  assert np.array_equal(np.sort(together), np.arange(num_examples))


# The devices of the published experiment, as they were when its results were
# made.
@pytest.mark.parametrize(
  ('num_train', 'num_classes', 'classes_per_client', 'of_acid', 'of_alid'),
  [
    # CIFAR-10.
    (
      *(50_000, 10, 5),
      ('04b3c44abeccd192', '0144316539b9f998'),
      ('fc1ace317004c270', 'b2ac9d2865cf204a'),
    ),
    # CIFAR-100.
    (
      *(50_000, 100, 20),
      ('4971a3523e8afde9', 'dc290650837169cf'),
      ('43bafc65764f5645', '9bfb7d0c8ecf08fc'),
    ),
    # Fashion-MNIST.
    (
      *(60_000, 10, 5),
      ('9438406af6d1fec1', '7d65514dad2abc34'),
      ('9a219202ec55ddf2', 'd4666bfead156fff'),
    ),
  ],
)
def test_published_devices_keep_their_examples(
  num_train, num_classes, classes_per_client, of_acid, of_alid
):
  train, test = (
    make_set([size // num_classes] * num_classes, seed)
    for seed, size in enumerate((num_train, 10_000))
  )
  for split, digests in (
    (partitions.acid, of_acid),
    (partitions.alid, of_alid),
  ):
    for seed, expected in enumerate(digests):
      found = digest(*split(train, test, 100, classes_per_client, seed))
      assert found == expected


@pytest.mark.parametrize(
  ('counts', 'num_clients', 'classes_per_client'),
  [
    (DIGITS, 40, 3),
    (DIGITS, 1, 10),
    (EVEN, 20, 1),
    (EVEN, 100, 5),
    ([5, 3], 2, 2),
    ([1], 1, 1),
  ],
)
def test_acid_shares_each_class_equally_among_consecutive_holders(
  counts, num_clients, classes_per_client
):
  train, test = make_set(counts), make_set(np.array(counts) * 2, seed=1)
  split = partitions.acid(train, test, num_clients, classes_per_client, 0)
  for client_data, (_, y) in zip(split, (train, test), strict=True):
    clients = read(client_data)
    check_exactly_once(clients, len(y), num_clients)
    amounts = [[] for _ in counts]
    for client, (indices, labels) in enumerate(clients):
      assert np.array_equal(labels, y[indices])
      held = (client + np.arange(classes_per_client)) % len(counts)
      assert set(labels) == set(held)
      for label in held:
        amounts[label].append(np.sum(labels == label))
    assert max(np.ptp(of_class) for of_class in amounts) <= 1


def test_alid_relabels_with_one_permutation_a_client_for_train_and_test():
  train, test = make_set(DIGITS), make_set(DIGITS // 3, seed=1)
  split = partitions.alid(train, test, 40, 3, 5)
  plain = partitions.acid(train, test, 40, 3, 5)
  relabellings = [{} for _ in range(40)]
  for client_data, true_data, (_, y) in zip(
    split, plain, (train, test), strict=True
  ):
    clients, true_clients = read(client_data), read(true_data)
    check_exactly_once(clients, len(y), 40)
    for client, (indices, labels) in enumerate(clients):
      assert np.array_equal(indices, true_clients[client][0])
      for true, new in zip(y[indices], labels, strict=True):
        assert relabellings[client].setdefault(int(true), int(new)) == new
  for client, relabelling in enumerate(relabellings):
    assert set(relabelling) == {(client + k) % 10 for k in range(3)}
    assert sorted(relabelling.values()) == [0, 1, 2]
  orders = [
    tuple(relabellings[i][(i + k) % 10] for k in range(3)) for i in range(40)
  ]
  assert len(set(orders)) == 6


@pytest.mark.parametrize('concentration', [1e-300, 1e-3, 0.3, 100.0])
@pytest.mark.parametrize('num_clients', [7, 30])
def test_dirichlet_gives_train_and_test_the_same_mixtures(
  concentration, num_clients
):
  train, test = make_set(DIGITS * 4), make_set(DIGITS * 2, seed=1)
  mixtures = []
  for client_data, (_, y) in zip(
    partitions.dirichlet(train, test, num_clients, concentration, 3),
    (train, test),
    strict=True,
  ):
    clients = read(client_data)
    check_exactly_once(clients, len(y), num_clients)
    counts = [np.bincount(labels, minlength=10) for _, labels in clients]
    # Each of the ten classes is rounded by less than one.
    assert np.ptp(np.sum(counts, axis=1)) < 10
    mixtures.append(np.array([c / c.sum() for c in counts]))
  size = test[1].size // num_clients
  assert np.abs(mixtures[0] - mixtures[1]).max() < 2.5 / size


def test_dirichlet_mixtures_follow_the_distribution():
  # With as many clients as here the fit to the class counts changes little. In
  # a symmetric Dirichlet the variance of a share is (1/C)(1-1/C) / (C a + 1).
  num_classes, data = 5, make_set([4000] * 5)
  for concentration in (0.1, 1.0, 10.0):
    client_data, _ = partitions.dirichlet(data, data, 100, concentration, 0)
    shares = np.array(
      [
        np.bincount(y, minlength=num_classes) / len(y)
        for _, y in read(client_data)
      ]
    )
    expected = 0.2 * 0.8 / (num_classes * concentration + 1)
    assert shares.var() == pytest.approx(expected, rel=0.3)


def test_dirichlet_takes_a_class_that_the_test_set_lacks():
  train, test = make_set(EVEN), make_set(EVEN[:9])
  _, client_data = partitions.dirichlet(train, test, 20, 0.5, 0)
  check_exactly_once(read(client_data), 540, 20)


SPLITS = [
  lambda train, test, seed: partitions.acid(train, test, 20, 3, seed),
  lambda train, test, seed: partitions.alid(train, test, 20, 3, seed),
  lambda train, test, seed: partitions.dirichlet(train, test, 20, 0.5, seed),
]


@pytest.mark.parametrize('split', SPLITS)
def test_the_seed_decides(split):
  train, test = make_set(EVEN), make_set(EVEN, seed=1)
  first, again, other = (split(train, test, seed) for seed in (1, 1, 2))
  for part, same, different in zip(first, again, other, strict=True):
    assert digest(part) == digest(same) != digest(different)


@pytest.mark.parametrize('split', SPLITS)
def test_a_graph_gives_the_same_as_the_fast_way(split):
  train, test = make_set(EVEN), make_set(EVEN, seed=1)
  client_data, _ = split((train[0], train[1].astype(np.uint64)), test, 0)
  assert client_data.client_ids[7] == 'client_0007'
  assert client_data.element_type_structure == collections.OrderedDict(
    x=tf.TensorSpec([], tf.float32), y=tf.TensorSpec([], tf.int32)
  )
  as_graph = tf.function(client_data.serializable_dataset_fn)
  for client_id in client_data.client_ids[::6]:
    fast = client_data.create_tf_dataset_for_client(client_id)
    for one, other in zip(fast, as_graph(tf.constant(client_id)), strict=True):
      assert np.array_equal(one['x'], other['x'])
      assert one['y'] == other['y']
  with pytest.raises(tf.errors.InvalidArgumentError):
    as_graph(tf.constant('client_0020'))
  with pytest.raises(ValueError, match='client_0020'):
    client_data.create_tf_dataset_for_client('client_0020')
  together = client_data.create_tf_dataset_from_all_clients()
  assert len(list(together)) == len(train[1])


def test_the_graph_of_a_client_holds_its_data_only():
  rng = np.random.default_rng(0)
  y = np.repeat(np.arange(10), 200)
  x = rng.random((2000, 28, 28, 1), np.float32)
  client_data, _ = partitions.acid((x, y), (x, y), 40, 3, 0)
  dataset = client_data.create_tf_dataset_for_client('client_0005')
  graph = tf.raw_ops.DatasetToGraphV2(
    input_dataset=tf.data.experimental.to_variant(dataset)
  ).numpy()
  assert len(graph) < 55 * (28 * 28 + 1) * 4


GOOD = make_set(EVEN)


@pytest.mark.parametrize(
  ('error', 'match', 'arguments'),
  [
    (TypeError, 'num_clients must be an integer, got 2.5', {'m': 2.5}),
    (ValueError, 'num_clients must be at least 1, got 0', {'m': 0}),
    (
      ValueError,
      r'train must be arrays .* y float32\[600\]',
      {'train': (GOOD[0], GOOD[1].astype(np.float32))},
    ),
    (
      ValueError,
      r'test must be arrays .* x float32\[600\], y int32\[599\]',
      {'test': (GOOD[0], GOOD[1][:-1])},
    ),
  ],
)
def test_bad_data_are_refused(error, match, arguments):
  arguments = {'train': GOOD, 'test': GOOD, 'm': 20, 'seed': 0} | arguments
  train, test, m, seed = arguments.values()
  for split in (partitions.acid, partitions.alid, partitions.dirichlet):
    with pytest.raises(error, match=match):
      split(train, test, m, 3, seed)


@pytest.mark.parametrize(
  ('match', 'counts', 'num_clients', 'classes_per_client'),
  [
    ('classes_per_client must be from 1 to 10, .* got 11', EVEN, 20, 11),
    ('60 examples of class 8 for the 0 devices', EVEN, 6, 3),
    ('60 examples of class 0 for the 61 devices', EVEN, 201, 3),
    ('test set has 0 examples of class 1 for the 8', [60, 0, 60], 12, 2),
  ],
)
def test_classes_that_cannot_be_shared_out_are_refused(
  match, counts, num_clients, classes_per_client
):
  train, test = make_set(EVEN[: len(counts)]), make_set(counts)
  for split in (partitions.acid, partitions.alid):
    with pytest.raises(ValueError, match=match):
      split(train, test, num_clients, classes_per_client, 0)


@pytest.mark.parametrize('concentration', [0, np.nan])
def test_bad_concentrations_are_refused(concentration):
  with pytest.raises(
    ValueError, match='concentration must be a positive finite number'
  ):
    partitions.dirichlet(GOOD, GOOD, 20, concentration, 0)
