"""Randomness that a seed decides, in networks that are made of Keras layers."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
import itertools
import threading
from typing import Any
from unittest import mock

from keras.src import backend
import tensorflow as tf

_Generator = backend.RandomGenerator
_lock = threading.RLock()
_seeds = contextvars.ContextVar('seeds', default=None)


class _SeededGenerator(_Generator):
  """The random generator of a Keras layer, with seeds that are tensors."""

  def __init__(self, seeds: Iterator[tf.Tensor]):
    super().__init__(rng_type=self.RNG_STATELESS)
    self._seeds = seeds

  def _maybe_init(self) -> None:
    """Draws no seed, unlike the base class."""

  def make_seed_for_stateless_op(self) -> tf.Tensor:
    return next(self._seeds)


def _make_generator(*args, **kwargs) -> _Generator:
  seeds = _seeds.get()
  if seeds is None:
    return _Generator(*args, **kwargs)
  return _SeededGenerator(seeds)


@contextlib.contextmanager
def seeded_layers(seed: tf.Tensor) -> Iterator[None]:
  """Makes the random layers that are created in this context follow a seed.

  A Keras layer creates a generator for itself, whose numbers depend on all the
  numbers that the process has drawn before. In this context it gets one of
  ours. Only the present thread, and threads that copy its `contextvars`, are
  concerned.

  Args:
    seed: An int32 tensor `[2]`. Every random tensor gets a seed made of it.
  """
  token = _seeds.set(tf.random.fold_in(seed, i) for i in itertools.count())
  try:
    with (
      _lock,
      mock.patch.object(backend, 'RandomGenerator', _make_generator),
    ):
      yield
  finally:
    _seeds.reset(token)


@contextlib.contextmanager
def scratch_graph() -> Iterator[tf.Graph]:
  """A graph for a trial: that of a `tf.function` in a computation of TFF."""
  graph = tf.__internal__.FuncGraph('scratch')
  with tf.Graph().as_default(), graph.as_default():
    yield graph


def seeded(
  apply: Callable[..., Any], make_inputs: Callable[[], tuple[Any, Any]]
) -> tuple[Callable[..., Any], bool]:
  """Gives the function of a model a seed.

  Args:
    apply: A function `(weights, x, training)` that makes its layers.
    make_inputs: A function that gives `(weights, x)` in the present graph.

  Returns:
    The function `(weights, x, training, seed=None)`, and whether it is random
    in training.

  Raises:
    ValueError: If it draws random numbers that no seed decides.
  """

  def apply_with_seed(weights, x, training, seed=None):
    if seed is None:
      seed = tf.zeros([2], tf.int32)
      if training and is_random:
        seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
    with seeded_layers(seed):
      return apply(weights, x, training)

  is_random = False
  with scratch_graph() as graph:
    seed = tf.compat.v1.placeholder(tf.int32, [2])
    apply_with_seed(*make_inputs(), True, seed)
    is_random = bool(seed.consumers())
  _check_no_other_randomness(graph)
  return apply_with_seed, is_random


def _check_no_other_randomness(graph: tf.Graph) -> None:
  definition = graph.as_graph_def()
  nodes = list(definition.node)
  for function in definition.library.function:
    nodes += function.node_def
  for node in nodes:
    is_stateless = node.op.startswith('Stateless')
    if not is_stateless and any(
      word in node.op for word in ('Random', 'Multinomial', 'TruncatedNormal')
    ):
      raise ValueError(
        f'The model draws random numbers by the operation {node.op}'
        f' ({node.name!r}), which takes no seed of the run: a run that is'
        ' resumed would end elsewhere. Use layers of Keras, as Dropout and'
        ' GaussianNoise. In a layer of your own, derive from'
        ' tf.keras.__internal__.layers.BaseRandomLayer and draw by'
        ' self._random_generator.random_normal() or random_uniform().'
      )
