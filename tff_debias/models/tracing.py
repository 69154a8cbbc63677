"""Traces functions that call the user's code, as TensorFlow 2 traces them.

TFF makes its computations in a graph of TensorFlow 1. There, `==` between
tensors compares identities, a Python `if` of a tensor is an error, and so is a
tensor, a table or a variable of the program. `computation` takes the place of
`tff.tensorflow.computation` for a function that calls a network, a loss, a
metric or a learning rate of the user.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import gc
import inspect
import threading
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import internals

#: Held while classes and variables stand for others, which all threads see.
lock = threading.RLock()
_Function = type(tf.function(lambda: None))


def computation(*types: Any) -> Callable[[Callable[..., Any]], tff.Computation]:
  """As `tff.tensorflow.computation(*types)`, for a function `outside` of TFF.

  >>> @models.computation(np.int32)
  ... def learning_rate(round_num):
  ...   return learning_rate_fn(round_num)

  Args:
    *types: The types of the function's arguments.

  Returns:
    A decorator.
  """
  return lambda function: tff.tensorflow.computation(outside(function), *types)


def outside(function: Callable[..., Any]) -> Callable[..., Any]:
  """A function that is traced outside of TFF's graph, and called inside of it.

  Tensors, tables and variables of the program become constants.

  Args:
    function: A function of structures of tensors and of data sets.

  Returns:
    The function. It is to be called in a graph, such as that of a computation.
  """

  @functools.wraps(function)
  def call_traced(*args, **kwargs):
    args = inspect.signature(function).bind(*args, **kwargs).args
    specs = tf.nest.map_structure(tf.type_spec_from_value, args)
    traced = trace(function, *specs)
    traced.set_external_captures(_constants(traced.captured_inputs))
    return traced(*args)

  return call_traced


def trace(function: Callable[..., Any], *specs: Any) -> Any:
  """The `ConcreteFunction` of structures of `tf.TypeSpec`s, from anywhere."""

  def unseeded(*args):
    # A seed of the program would give every client the same numbers.
    tf.compat.v1.get_default_graph().seed = None
    return function(*args)

  with internals.eager_mode():
    return tf.function(unseeded, autograph=False).get_concrete_function(*specs)


def specs_of(tensors: Any) -> Any:
  """The `tf.TensorSpec`s of tensors or arrays, in their structure."""
  return tf.nest.map_structure(
    lambda t: None if t is None else tf.TensorSpec(t.shape, t.dtype), tensors
  )


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
  """Calls code of the user, where an `if` of a tensor becomes a `tf.cond`.

  A `tf.function` of the user is called as the function that it wraps. By itself
  it would keep the tensors that stood for the weights in its first call.

  Args:
    function: The function, or a Keras layer, loss or metric.
    *args: Its arguments.
    **kwargs: Its arguments by name.

  Returns:
    What the function returns.
  """
  thread = threading.get_ident()

  def call_wrapped(self, *args, **kwargs):
    # The functions of a SavedModel, of a derived class, wrap none.
    if type(self) is not _Function or threading.get_ident() != thread:
      return call_function(self, *args, **kwargs)
    return convert(self.python_function, user_requested=True)(*args, **kwargs)

  is_on = internals.autograph_context.Status.ENABLED
  with lock, internals.autograph_context.ControlStatusCtx(is_on) as status:
    convert = functools.partial(
      tf.__internal__.autograph.tf_convert, ctx=status
    )
    call_function = _Function.__call__
    _Function.__call__ = call_wrapped
    try:
      return convert(function)(*args, **kwargs)
    finally:
      _Function.__call__ = call_function


@contextlib.contextmanager
def comparing_values() -> Iterator[None]:
  """Lets `==` and `!=` between tensors compare values in a graph of TFF too."""

  def equal(tensor, other):
    return other is not None and tf.raw_ops.Equal(
      x=tensor, y=other, incompatible_shape_error=False
    )

  def not_equal(tensor, other):
    return other is None or tf.raw_ops.NotEqual(
      x=tensor, y=other, incompatible_shape_error=False
    )

  with lock:
    operators = tf.Tensor.__eq__, tf.Tensor.__ne__
    tf.Tensor.__eq__, tf.Tensor.__ne__ = equal, not_equal
    try:
      yield
    finally:
      tf.Tensor.__eq__, tf.Tensor.__ne__ = operators


def _constants(captured: list[tf.Tensor]) -> list[tf.Tensor]:
  """Tensors, tables and variables of the present graph, of the same content.

  TensorFlow gives the handle of a table or variable only, and not the object,
  which knows how to read it. So the object is searched among all of Python's.
  """
  owners = {}
  has_handles = any(t.dtype == tf.resource for t in captured)
  for owner in gc.get_objects() if has_handles else ():
    if issubclass(type(owner), tf.Variable):
      owners[id(getattr(owner, '_handle', None))] = owner
    elif issubclass(type(owner), internals.LookupInterface):
      owners[id(owner.resource_handle)] = owner
  return [
    _filled(owners[id(t)]) if t.dtype == tf.resource else tf.constant(t.numpy())
    for t in captured
  ]


def _filled(owner: internals.LookupInterface | tf.Variable) -> tf.Tensor:
  """The handle of a new table or variable with the content of this one."""
  if getattr(owner, 'has_stood_in', False):
    raise ValueError(
      f'The weight {owner.name!r} is used by a function that was traced before'
      ' (tf.saved_model.load, TensorFlow Hub), which cannot be trained here:'
      ' leave it out of the weights of the model.'
    )
  is_variable = isinstance(owner, tf.Variable)
  with internals.eager_mode():
    content = [owner.value()] if is_variable else owner.export()
    content = [tensor.numpy() for tensor in content]
  if not is_variable:
    types = owner.key_dtype, owner.value_dtype
    handle = tf.raw_ops.AnonymousHashTable(
      key_dtype=types[0], value_dtype=types[1]
    )
    keys, values = map(tf.constant, content, types)
    fill = tf.raw_ops.InitializeTableV2(
      table_handle=handle, keys=keys, values=values
    )
  else:
    value = tf.constant(content[0])
    if owner.name.endswith('StateVar:0'):
      # Of a tf.random.Generator: every call begins elsewhere.
      value = tf.random.uniform(
        value.shape, minval=0, maxval=value.dtype.max, dtype=value.dtype
      )
    handle = tf.raw_ops.VarHandleOp(
      dtype=owner.dtype,
      shape=owner.shape,
      shared_name=internals.anonymous_name(),
    )
    fill = tf.raw_ops.AssignVariableOp(resource=handle, value=value)
  with tf.control_dependencies([fill]):
    return tf.identity(handle)
