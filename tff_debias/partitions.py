"""Splits a data set over devices that hold different classes.

`acid` and `alid` are the two splits of Acar et al. (ICML 2021), `dirichlet` is
the usual label skew. They take the training and the test set together, because
a device is tested on the classes (and, in `alid`, on the labels) that it was
trained on. Every example goes to exactly one device.

Device 7 is the client `client_0007`. Its examples are
`OrderedDict(x=..., y=...)`, `y` an int32 scalar, in the order of the arrays. A
data set reads the arrays when it is made: do not change them.
"""

import collections
from collections.abc import Callable
import functools
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks

ClientData: TypeAlias = tff.simulation.datasets.ClientData
Examples: TypeAlias = tuple[np.ndarray, np.ndarray]
# From the examples of each class `[classes]` to the devices' shares of them,
# float `[devices, classes]`.
Shares: TypeAlias = Callable[[np.ndarray], np.ndarray]

# Independent streams of random numbers of one seed.
_TRAIN, _TEST, _MIXTURES, _RELABELLING = range(4)


def acid(
  train: Examples,
  test: Examples,
  num_clients: int,
  classes_per_client: int,
  seed: int,
) -> tuple[ClientData, ClientData]:
  """Splits as ACID: device i holds the classes i, i+1, …, i+n-1, modulo all.

  The devices that hold a class share its examples equally, to within one. So
  all devices hold equally many where the number of holders divides the examples
  of every class, as in the published experiment.

  Args:
    train: `(x, y)`: an array `[examples, ...]` and the classes `[examples]`,
      integers 0, 1, ….
    test: The same for the test set.
    num_clients: m.
    classes_per_client: n.
    seed: Chooses which examples of a class a device gets.

  Returns:
    The `tff.simulation.datasets.ClientData` of the training and the test set.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range, no device would hold a class, or
      a class has fewer examples than devices that hold it.
  """
  holds = _consecutive(train, test, num_clients, classes_per_client, seed)
  labels = np.broadcast_to(np.arange(holds.shape[1]), holds.shape)
  return _split(train, test, _equal_shares(holds), labels, seed)


def alid(
  train: Examples,
  test: Examples,
  num_clients: int,
  classes_per_client: int,
  seed: int,
) -> tuple[ClientData, ClientData]:
  """Splits as ALID: as `acid`, and every device relabels its n classes 0..n-1.

  Each device relabels by a random permutation of its own, the same in both
  sets. So a label means different things on different devices, and the network
  has n outputs. With the same seed the devices hold the same examples as in
  `acid`.

  Args:
    train: As in `acid`.
    test: As in `acid`.
    num_clients: m.
    classes_per_client: n.
    seed: As in `acid`; chooses the permutations too.

  Returns:
    As `acid`.

  Raises:
    TypeError: As `acid`.
    ValueError: As `acid`.
  """
  holds = _consecutive(train, test, num_clients, classes_per_client, seed)
  labels = np.zeros(holds.shape, np.int32)
  rng = np.random.default_rng([seed, _RELABELLING])
  for device in range(num_clients):
    classes = (device + np.arange(classes_per_client)) % holds.shape[1]
    labels[device, classes] = rng.permutation(classes_per_client)
  return _split(train, test, _equal_shares(holds), labels, seed)


def dirichlet(
  train: Examples,
  test: Examples,
  num_clients: int,
  concentration: float,
  seed: int,
) -> tuple[ClientData, ClientData]:
  """Splits by class mixtures drawn from a symmetric Dirichlet distribution.

  This is the variant with equally large devices (Hsu et al., 2019,
  arXiv:1909.06335; Acar et al., FedDyn, ICLR 2021): each device draws its
  mixture of all classes. There, a device that draws a class that is used up
  draws again, so the last devices take what is left. Here all mixtures are
  fitted to the class counts at once by iterative proportional fitting, which
  changes them least in relative entropy, and then rounded. So a device has the
  same mixture in both sets, up to rounding and to a difference of the class
  counts.

  Args:
    train: As in `acid`.
    test: As in `acid`.
    num_clients: m.
    concentration: The parameter of the distribution: near 0 a device has one
      class, at infinity all devices are alike.
    seed: Chooses the mixtures, and the examples as in `acid`.

  Returns:
    As `acid`. The sizes of the devices differ by rounding only.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range.
  """
  num_classes = _check(train, test, num_clients, seed)
  checks.check_number('concentration', concentration, positive=True)
  rng = np.random.default_rng([seed, _MIXTURES])
  # Below 1e-6 a device has one class all the same, and NumPy draws without end.
  concentration = max(concentration, 1e-6)
  mixtures = rng.dirichlet([concentration] * num_classes, num_clients)
  # Small concentrations underflow to zeros, which no fitting can fill.
  mixtures = np.maximum(mixtures, 1e-9)
  labels = np.broadcast_to(np.arange(num_classes), mixtures.shape)
  return _split(train, test, _fitted_shares(mixtures), labels, seed)


def _consecutive(
  train: Examples, test: Examples, num_clients: int, size: int, seed: int
) -> np.ndarray:
  """Which `size` classes a device holds, bool `[devices, classes]`."""
  num_classes = _check(train, test, num_clients, seed)
  checks.check_integer('classes_per_client', size)
  if size > num_classes:
    raise ValueError(
      f'classes_per_client must be at most {num_classes}, the number of'
      f' classes, got {size}.'
    )
  first = np.arange(num_clients)[:, np.newaxis]
  holds = (np.arange(num_classes) - first) % num_classes < size
  holders = holds.sum(axis=0)
  for name, (_, y) in (('train', train), ('test', test)):
    supply = np.bincount(y.astype(int), minlength=num_classes)
    for label in np.flatnonzero((holders == 0) | (supply < holders)):
      raise ValueError(
        f'The {name} set has {supply[label]} examples of class {label} for the'
        f' {holders[label]} devices that hold this class. Every class needs a'
        ' device, and every device an example of each of its classes: change'
        f' num_clients, {num_clients}, or classes_per_client, {size}.'
      )
  return holds


def _equal_shares(holds: np.ndarray) -> Shares:
  """The holders of a class have equal shares of it."""
  return lambda supply: holds / holds.sum(axis=0) * supply


def _fitted_shares(mixtures: np.ndarray) -> Shares:
  """The shares of equally large devices, as near as possible to mixtures."""

  def shares(supply: np.ndarray) -> np.ndarray:
    fitted, size = mixtures, supply.sum() / len(mixtures)
    for _ in range(200):
      fitted = fitted * size / fitted.sum(axis=1, keepdims=True)
      fitted = fitted * supply / np.maximum(fitted.sum(axis=0), 1e-300)
    return fitted

  return shares


def _split(
  train: Examples, test: Examples, shares: Shares, labels: np.ndarray, seed: int
) -> tuple[ClientData, ClientData]:
  """Gives each device its shares of both sets, rounded.

  A class is called `labels[device, class]` on a device.
  """
  split = []
  for stream, (x, y) in ((_TRAIN, train), (_TEST, test)):
    rng = np.random.default_rng([seed, stream])
    supply = np.bincount(y.astype(int), minlength=labels.shape[1])
    # Sums are rounded, not shares, so that no example is left over.
    ends = np.rint(np.cumsum(shares(supply), axis=0)).astype(int)
    parts = [
      np.split(rng.permutation(np.flatnonzero(y == label)), ends[:-1, label])
      for label in range(labels.shape[1])
    ]
    indices = [np.sort(np.concatenate(p)) for p in zip(*parts, strict=True)]
    own_labels = np.empty(len(y), np.int32)
    for chosen, names in zip(indices, labels, strict=True):
      own_labels[chosen] = names[y[chosen]]
    ids = [f'client_{device:04d}' for device in range(len(indices))]
    split.append(indexed_client_data(ids, x, own_labels, indices))
  return split[0], split[1]


def indexed_client_data(
  ids: list[str], x: np.ndarray, y: np.ndarray, indices: list[np.ndarray]
) -> ClientData:
  """The client data of clients that hold the examples at the given indices."""
  by_id = dict(zip(ids, indices, strict=True))

  def create_dataset(client_id: str | tf.Tensor) -> tf.data.Dataset:
    if isinstance(client_id, str):
      take, chosen = functools.partial(np.take, axis=0), by_id[client_id]
    else:
      # In a graph any device may be asked for, so that all data are in it. The
      # place is out of bounds, an error, where the id is unknown.
      place = tf.where(tf.equal(ids, client_id))[0, 0]
      members = tf.RaggedTensor.from_row_lengths(
        np.concatenate(indices), [len(part) for part in indices]
      )
      take, chosen = tf.gather, members[place]
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(x=take(x, chosen), y=take(y, chosen))
    )

  return ClientData.from_clients_and_tf_fn(ids, create_dataset)


def _check(train: Examples, test: Examples, num_clients: int, seed: int) -> int:
  """Checks what all splits have in common, and gives the number of classes."""
  checks.check_integer('num_clients', num_clients)
  checks.check_integer('seed', seed, 0)
  for name, (x, y) in (('train', train), ('test', test)):
    if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)):
      raise TypeError(
        f'{name} must be NumPy arrays (x, y), got a {type(x).__name__} and a'
        f' {type(y).__name__}.'
      )
    if y.ndim != 1 or y.dtype.kind not in 'iu' or len(x) != len(y):
      raise ValueError(
        f'{name} must be arrays (x, y) with a row of x and an integer of y for'
        f' each example, got x {x.dtype}{list(x.shape)}, y'
        f' {y.dtype}{list(y.shape)}.'
      )
    if len(y) < num_clients:
      raise ValueError(
        f'num_clients must be at most {len(y)}, the number of {name} examples,'
        f' got {num_clients}.'
      )
    if y.min() < 0:
      raise ValueError(f'{name} y must not be negative, got {y.min()}.')
  return int(max(train[1].max(), test[1].max())) + 1
