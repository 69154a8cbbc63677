"""A loop over the batches of a client, which are taken as tensors at once."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tff_debias import checks
from tff_debias import internals

# Of a client whose number of batches is not known beforehand.
_MAX_BATCHES = 2**20


def reduce_batches(
  dataset: tf.data.Dataset,
  initial: Any,
  step: Callable[..., Any],
  batches_per_step: int = 1,
  jit_compile: bool = False,
) -> Any:
  """Folds a data set as `tf.data.Dataset.reduce` does, but faster.

  All batches are in memory at once, as tensors: an iterator takes a millisecond
  for each client, and two thirds of the time of a small step. Batches of
  different sizes are padded to the largest and cut again.

  Args:
    dataset: The batches, finitely many, of tensors whose rank is known.
    initial: The initial state, a structure of tensors.
    step: A function `(state, *batches) -> state` of `batches_per_step` batches.
      Gradients may be taken inside of it, but not through the loop.
    batches_per_step: How many consecutive batches make a step. The rest at the
      end is not used. If there is one batch alone, its examples are dealt out
      in turn to that many batches, which make one step; not if the size of a
      batch is static, or if there are fewer examples than batches.
    jit_compile: Whether XLA compiles the loop, all steps together. The shapes
      of batches must be static then.

  Returns:
    The last state.

  Raises:
    ValueError: With `jit_compile`, if a shape is not static.
  """
  for spec in tf.nest.flatten(dataset.element_spec):
    if jit_compile and not spec.shape.is_fully_defined():
      raise ValueError(
        'jit_compile needs batches of static shapes, such as'
        ' tf.TensorSpec([20, 784]) in input_spec and batch(20,'
        f' drop_remainder=True) for the data, got {spec}.'
      )

  # TensorFlow does not optimize the body of a While operation, but it does
  # optimize functions that the body calls and that are not inlined: 1.8 times
  # as fast for a convolution. The function takes a list of batches, because
  # TensorFlow warns of the names of arguments like `*batches`.
  step_on = tf.function(
    lambda state, batches: step(state, *batches),
    autograph=False,
    experimental_attributes={'_noinline': True},
  )

  # A tf.function, because only there an iterator can be made inside a graph.
  @tf.function(autograph=False)
  def loop(dataset: tf.data.Dataset, state: Any) -> Any:
    dataset = checks.ensure(
      tf.not_equal(dataset.cardinality(), tf.data.INFINITE_CARDINALITY),
      [
        'The data set has no end: call `take` after `repeat`, or give `repeat`'
        ' a number.'
      ],
      dataset,
    )
    state = _fold(dataset, state, step_on, batches_per_step, jit_compile)
    _keep_functional(tf.compat.v1.get_default_graph())
    return state

  return loop(dataset, initial)


def has_data(dataset: tf.data.Dataset) -> tf.Tensor:
  """Whether a data set has an element, a bool scalar."""
  cardinality = dataset.cardinality()
  found = dataset.take(1).map(lambda *_: True)
  none = tf.data.Dataset.from_tensors(False)
  return tf.cond(
    tf.equal(cardinality, tf.data.UNKNOWN_CARDINALITY),
    lambda: found.concatenate(none).take(1).get_single_element(),
    lambda: tf.not_equal(cardinality, 0),
  )


def _fold(
  dataset: tf.data.Dataset,
  state: Any,
  step_on: Callable[[Any, list[Any]], Any],
  batches_per_step: int,
  jit_compile: bool,
) -> Any:
  """Takes all batches at once, as a stack, and folds them."""
  count, stack, batch_at = _stack(dataset)
  num_steps = count // batches_per_step
  specs = tf.nest.flatten(dataset.element_spec)
  if batches_per_step > 1 and all(spec.shape[0] is None for spec in specs):
    whole_at, is_alone = batch_at, tf.equal(count, 1)
    num_examples = tf.shape(tf.nest.flatten(whole_at(stack, 0))[0])[0]
    has_parts = is_alone & (num_examples >= batches_per_step)
    num_steps = tf.where(has_parts, 1, num_steps)

    def batch_at(stack: Any, i: tf.Tensor) -> Any:
      first = tf.where(is_alone, i, 0)
      stride = tf.where(is_alone, batches_per_step, 1)
      batch = whole_at(stack, i - first)
      return tf.nest.map_structure(
        lambda t, spec: tf.ensure_shape(t[first::stride], spec.shape),
        batch,
        dataset.element_spec,
      )

  def fold(num_steps: tf.Tensor, stack: Any, state: Any) -> Any:
    def turn(i: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
      first = batches_per_step * i
      batches = [batch_at(stack, first + j) for j in range(batches_per_step)]
      return i + 1, step_on(state, batches)

    return tf.while_loop(
      lambda i, _: i < num_steps, turn, (0, state), parallel_iterations=1
    )[1]

  if jit_compile:
    fold = tf.function(fold, jit_compile=True, autograph=False)
  return fold(num_steps, stack, state)


def _stack(
  dataset: tf.data.Dataset,
) -> tuple[tf.Tensor, Any, Callable[[Any, tf.Tensor], Any]]:
  """The number of batches, their stack, and a function that cuts one out."""
  spec = dataset.element_spec
  # An empty batch at the end, for a data set without batches has no stack.
  end = tf.nest.map_structure(
    lambda s: tf.zeros([size or 0 for size in s.shape], s.dtype), spec
  )
  count = dataset.cardinality()
  size = tf.where(count < 0, tf.constant(_MAX_BATCHES, tf.int64), count) + 1
  dataset = dataset.concatenate(tf.data.Dataset.from_tensors(end))
  if all(s.shape.is_fully_defined() for s in tf.nest.flatten(spec)):
    stack = dataset.batch(size).get_single_element()

    def cut(tensors: Any, i: tf.Tensor) -> Any:
      return tf.nest.map_structure(lambda tensor: tensor[i], tensors)

  else:

    def with_shapes(*parts: Any) -> tuple[Any, Any]:
      batch = tf.nest.pack_sequence_as(spec, tf.nest.flatten(parts))
      return batch, tf.nest.map_structure(tf.shape, batch)

    padded = dataset.map(with_shapes).padded_batch(size)
    stack = padded.get_single_element()

    def cut(tensors: Any, i: tf.Tensor) -> Any:
      return tf.nest.map_structure(
        lambda tensor, shape, s: tf.ensure_shape(
          tf.slice(tensor[i], tf.zeros_like(shape[i]), shape[i]), s.shape
        ),
        *tensors,
        spec,
      )

  return tf.shape(tf.nest.flatten(stack)[0])[0] - 1, stack, cut


def _keep_functional(graph: tf.Graph) -> None:
  """Keeps TensorFlow from dissolving the loops of a graph into its nodes.

  Grappler's dependency optimizer makes a cycle of some dissolved loops with a
  second derivative of a convolution in them ("235 nodes in a cycle").
  """
  for op in graph.get_operations():
    if op.type in ('While', 'StatelessWhile'):
      op._set_attr('_lower_using_switch_merge', internals.AttrValue(b=False))
