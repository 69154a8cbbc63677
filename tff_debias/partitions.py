"""Splits a data set over devices that hold different classes.

`acid` and `alid` are the two splits of Acar et al. (ICML 2021), `dirichlet` is
the usual label skew. They take the training and the test set together, because
a device is tested on the classes (and, in `alid`, on the labels) that it was
trained on.

Device 7 is the client `client_0007`. Its examples are
`OrderedDict(x=..., y=...)`, `y` an int32 scalar, in the order of the arrays,
which are kept by reference and read when a data set is made: do not change
them.
"""

import collections
from collections.abc import Sequence

import numpy as np
import scipy.sparse.csgraph
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks

ClientData = tff.simulation.datasets.ClientData
Examples = tuple[np.ndarray, np.ndarray]

_NUM_FITTING_STEPS = 200
_SMALLEST_CONCENTRATION = 1e-6
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

  In both sets every example goes to exactly one device and all devices hold
  equally many, to within one where the number of examples is no multiple of the
  number of devices. Within that a device's classes are as balanced as the class
  counts allow, and none is empty if that is possible.

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
    ValueError: If an argument is out of range, `x` is not finite, or no such
      split exists.
  """
  holds = _consecutive(train, test, num_clients, classes_per_client, seed)
  labels = np.broadcast_to(np.arange(holds.shape[1]), holds.shape)
  return _split(train, test, holds.astype(float), labels, seed, at_least=1)


def alid(
  train: Examples,
  test: Examples,
  num_clients: int,
  classes_per_client: int,
  seed: int,
) -> tuple[ClientData, ClientData]:
  """Splits as ALID: as `acid`, and every device relabels its n classes 0..n-1.

  The relabelling is a random permutation of the device's own, the same in both
  sets, so that a label means different things on different devices; the network
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
  return _split(train, test, holds.astype(float), labels, seed, at_least=1)


def dirichlet(
  train: Examples,
  test: Examples,
  num_clients: int,
  concentration: float,
  seed: int,
) -> tuple[ClientData, ClientData]:
  """Splits by class mixtures drawn from a symmetric Dirichlet distribution.

  The variant with equally large devices (Hsu et al., 2019, arXiv:1909.06335;
  Acar et al., FedDyn, ICLR 2021): each device draws its mixture of all classes.
  There, a device that draws a class that is used up draws again, so that the
  last ones take what is left. Here the drawn mixtures are fitted to the class
  counts all at once (iterative proportional fitting, which is as near as
  possible in relative entropy), so that each example goes to exactly one device
  and the test set of a device has the mixture of its training set, up to
  rounding and to a difference of the class counts.

  Args:
    train: As in `acid`.
    test: As in `acid`.
    num_clients: m.
    concentration: The parameter of the distribution, at least 1e-6: near 0 a
      device has one class, at infinity all devices are alike.
    seed: Chooses the mixtures, and the examples as in `acid`.

  Returns:
    As `acid`; sizes differ by one at most.

  Raises:
    TypeError: If an argument is of a wrong type.
    ValueError: If an argument is out of range, or `x` is not finite.
  """
  num_classes = _check(train, test, num_clients, seed)
  checks.check_number('concentration', concentration, positive=True)
  if concentration < _SMALLEST_CONCENTRATION:
    raise ValueError(
      f'concentration must be at least {_SMALLEST_CONCENTRATION}, got'
      f' {concentration!r}: NumPy would draw without end.'
    )
  rng = np.random.default_rng([seed, _MIXTURES])
  mixtures = rng.dirichlet([concentration] * num_classes, num_clients)
  # Small concentrations underflow to zeros, which no fitting can fill.
  mixtures = np.maximum(mixtures, 1e-9)
  labels = np.broadcast_to(np.arange(num_classes), mixtures.shape)
  return _split(train, test, mixtures, labels, seed, at_least=0)


def _consecutive(
  train: Examples,
  test: Examples,
  num_clients: int,
  classes_per_client: int,
  seed: int,
) -> np.ndarray:
  """Which classes a device holds, bool `[devices, classes]`, if it can be."""
  num_classes = _check(train, test, num_clients, seed)
  checks.check_integer('classes_per_client', classes_per_client, 1)
  if classes_per_client > num_classes:
    raise ValueError(
      f'classes_per_client must be at most {num_classes}, the number of'
      f' classes, got {classes_per_client}.'
    )
  if num_clients + classes_per_client - 1 < num_classes:
    raise ValueError(
      f'With num_clients {num_clients} and classes_per_client'
      f' {classes_per_client} no device holds the classes from'
      f' {num_clients + classes_per_client - 1} on: num_clients must be at'
      f' least {num_classes - classes_per_client + 1}.'
    )

  def holds(size: int) -> np.ndarray:
    first = np.arange(num_clients)[:, None]
    return (np.arange(num_classes) - first) % num_classes < size

  def is_possible(supply: np.ndarray, size: int) -> bool:
    return _amounts(holds(size).astype(float), supply, 0) is not None

  for name, (_, y) in (('train', train), ('test', test)):
    supply = np.bincount(y.astype(np.int64), minlength=num_classes)
    if not is_possible(supply, classes_per_client):
      # With all classes everywhere it is always possible.
      enough = classes_per_client + 1
      while not is_possible(supply, enough):
        enough += 1
      raise ValueError(
        f'The {name} set has {supply.tolist()} examples of its classes, which'
        f' {num_clients} equally large devices (num_clients) of'
        f' {classes_per_client} classes (classes_per_client) cannot share out'
        f' so that each example goes to one device: classes_per_client must be'
        f' at least {enough} for this num_clients.'
      )
  return holds(classes_per_client)


def _split(
  train: Examples,
  test: Examples,
  weights: np.ndarray,
  labels: np.ndarray,
  seed: int,
  at_least: int,
) -> tuple[ClientData, ClientData]:
  """Splits both sets by the weights `[devices, classes]`.

  Args:
    train: The training set.
    test: The test set.
    weights: The wanted mixtures, 0 where a device does not hold a class.
    labels: int `[devices, classes]`, what a class is called on a device.
    seed: The seed.
    at_least: How many examples of each of its classes a device should have.

  Returns:
    The client data of the two sets.
  """
  split = []
  for stream, (x, y) in ((_TRAIN, train), (_TEST, test)):
    supply = np.bincount(y.astype(np.int64), minlength=weights.shape[1])
    amounts = _amounts(weights, supply, at_least)
    if amounts is None:
      amounts = _amounts(weights, supply, 0)
    rng = np.random.default_rng([seed, stream])
    parts = []
    for label, ends in enumerate(np.cumsum(amounts, axis=0).T):
      shuffled = rng.permutation(np.flatnonzero(y == label))
      parts.append(np.split(shuffled, ends[:-1]))
    indices = [
      np.sort(np.concatenate(part)) for part in zip(*parts, strict=True)
    ]
    split.append(_client_data(x, y, indices, labels.astype(np.int32)))
  return tuple(split)


def _amounts(
  weights: np.ndarray, supply: np.ndarray, at_least: int
) -> np.ndarray | None:
  """How many examples of each class each device gets.

  The weights are fitted to the sums (iterative proportional fitting), then
  rounded up or down. Where zeros or `at_least` leave no such rounding, the
  allowed distance from the fitted weights is widened as far as needed.

  Args:
    weights: float `[devices, classes]`; none where 0.
    supply: int `[classes]`, the examples there are.
    at_least: The smallest amount where the weight is not 0.

  Returns:
    int `[devices, classes]` whose columns sum to the supply and whose rows are
    equal to within one; `None` if there is none.
  """
  size = supply.sum() / len(weights)
  fitted = weights.copy()
  for _ in range(_NUM_FITTING_STEPS):
    fitted *= size / fitted.sum(axis=1, keepdims=True)
    fitted *= supply / fitted.sum(axis=0)
  fitted = np.maximum(fitted, at_least)
  slack = 0
  while True:
    low = np.maximum(np.floor(fitted) - slack, at_least)
    high = np.ceil(fitted) + slack
    low, high = (np.where(weights > 0, b, 0).astype(int) for b in (low, high))
    amounts = _flow(low, high, supply)
    if amounts is not None or slack > supply.sum():
      return amounts
    slack = 2 * slack + 1


def _flow(
  low: np.ndarray, high: np.ndarray, supply: np.ndarray
) -> np.ndarray | None:
  """Solves the transportation problem within bounds, as a maximum flow.

  Args:
    low: int `[devices, classes]`, the smallest amounts.
    high: int `[devices, classes]`, the largest.
    supply: int `[classes]`, the sums of the columns.

  Returns:
    As `_amounts`.
  """
  num_clients, num_classes = low.shape
  size, num_larger = divmod(supply.sum(), num_clients)
  sizes, rest = size - low.sum(axis=1), supply - low.sum(axis=0)
  if sizes.min() < 0 or rest.min() < 0:
    return None
  # What is below the bounds is settled. The rest flows from the source to the
  # devices, `sizes` to each and one more to some, to the classes, to the sink.
  ends, some = scipy.sparse.csr_matrix((1, 1)), np.ones(num_clients)
  capacity = scipy.sparse.bmat(
    [
      [ends, [[num_larger]], sizes[None], None, None],
      [None, ends, some[None], None, None],
      [None, None, None, high - low, None],
      [None, None, None, None, rest[:, None]],
      [None, None, None, None, ends],
    ]
  )
  capacity = capacity.astype(np.int32).tocsr()
  sink = num_clients + num_classes + 2
  result = scipy.sparse.csgraph.maximum_flow(capacity, 0, sink)
  if result.flow_value < rest.sum():
    return None
  flow = result.flow[2 : num_clients + 2, num_clients + 2 : sink]
  return low + flow.toarray()


def _client_data(
  x: np.ndarray,
  y: np.ndarray,
  indices: Sequence[np.ndarray],
  labels: np.ndarray,
) -> ClientData:
  """The client data of devices that hold the examples at the given indices."""
  ids = [f'client_{device:04d}' for device in range(len(indices))]
  devices = {client_id: device for device, client_id in enumerate(ids)}
  y = y.astype(np.int32)

  def create_dataset(client_id: str | tf.Tensor) -> tf.data.Dataset:
    if isinstance(client_id, str):
      device = devices[client_id]
      chosen = indices[device]
      device_x, device_y = x[chosen], labels[device][y[chosen]]
    else:
      # In a graph any device may be asked for, so that all data are in it. The
      # index is out of bounds, an error, where the id is unknown.
      device = tf.where(tf.equal(ids, client_id))[0, 0]
      lengths = [len(part) for part in indices]
      chosen = tf.RaggedTensor.from_row_lengths(
        np.concatenate(indices), lengths
      )[device]
      device_x = tf.gather(x, chosen)
      device_y = tf.gather(tf.gather(labels, device), tf.gather(y, chosen))
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(x=device_x, y=device_y)
    )

  return ClientData.from_clients_and_tf_fn(ids, create_dataset)


def _check(train: Examples, test: Examples, num_clients: int, seed: int) -> int:
  """Checks what all splits have in common, and gives the number of classes."""
  checks.check_integer('num_clients', num_clients, 1)
  checks.check_integer('seed', seed, 0)
  for name, examples in (('train', train), ('test', test)):
    if (
      not isinstance(examples, tuple)
      or len(examples) != 2
      or not all(isinstance(array, np.ndarray) for array in examples)
    ):
      raise TypeError(
        f'{name} must be a pair (x, y) of NumPy arrays, got'
        f' {type(examples).__name__}.'
      )
    x, y = examples
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
      raise ValueError(
        f'{name} y must be integers of shape [examples], got {y.dtype} of shape'
        f' {list(y.shape)}.'
      )
    if x.ndim < 1 or len(x) != len(y):
      raise ValueError(
        f'{name} x must have the {len(y)} examples of y in its first dimension,'
        f' got the shape {list(x.shape)}.'
      )
    if len(y) < num_clients:
      raise ValueError(
        f'num_clients must be at most {len(y)}, the number of {name} examples,'
        f' got {num_clients}: no device may be empty.'
      )
    if y.min() < 0:
      raise ValueError(f'{name} y must not be negative, got {y.min()}.')
    if np.issubdtype(x.dtype, np.inexact) and not np.isfinite(x).all():
      raise ValueError(
        f'{name} x must be finite, but example'
        f' {np.argwhere(~np.isfinite(x))[0][0]} has a NaN or an infinity.'
      )
  if train[0].shape[1:] != test[0].shape[1:] or train[0].dtype != test[0].dtype:
    raise ValueError(
      'train x and test x must be alike, got examples of'
      f' {train[0].dtype}{list(train[0].shape[1:])} and'
      f' {test[0].dtype}{list(test[0].shape[1:])}.'
    )
  num_classes = int(max(train[1].max(), test[1].max())) + 1
  for name, (_, y) in (('train', train), ('test', test)):
    present = np.append(np.unique(y), num_classes)
    missing = np.flatnonzero(present != np.arange(len(present)))
    if len(missing):
      raise ValueError(
        f'{name} y must have examples of all classes 0 to {num_classes - 1},'
        f' but there is none of class {missing[0]}.'
      )
  return num_classes
