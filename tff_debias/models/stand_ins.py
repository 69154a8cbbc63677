"""Lets the variables of a Keras object stand for tensors, for a while.

So a network is a function of its weights, and a metric one of its state, as by
PyTorch's `functional_call`: nothing is built again or cloned. No variable is in
the graph, and a gradient of any order stays in one graph.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib

import tensorflow as tf

from tff_debias import internals
from tff_debias.models import tracing


@contextlib.contextmanager
def standing_for(
  owner: tf.keras.layers.Layer,
  variables: Sequence[tf.Variable] = (),
  values: Sequence[tf.Tensor] = (),
) -> Iterator[list[tf.Tensor]]:
  """Lets an owner's variables stand for tensors.

  Args:
    owner: A model or a metric, which may be called in this context.
    variables: Its variables.
    values: A tensor for each of them.

  Yields:
    The list of the values. Where the owner assigns to a variable, its value is
    exchanged in this list; the variable itself never changes.
  """
  present = list(values)
  # A variable of mixed precision wraps another one.
  variables = [getattr(v, '_variable', v) for v in variables]
  kinds = {type(layer) for layer in owner._flatten_layers()}
  bases = {c: c.__bases__ for kind in kinds for c in kind.__mro__[:-1]}
  with tracing.lock:
    before = [(type(v), dict(vars(v))) for v in variables]
    try:
      # Layers that are made in a graph of TensorFlow 1, as TFF makes them, move
      # their class to another base class, where older layers fail. To begin to
      # make one here moves it back.
      for kind in kinds:
        kind.__new__(kind)  # type: ignore[call-overload]  # Keras' own.
      for place, v in enumerate(variables):
        v.__class__ = _StandIn
        vars(v).update(
          present=present, place=place, home=tf.compat.v1.get_default_graph()
        )
      yield present
    finally:
      for kind, old in bases.items():
        if kind.__bases__ != old:
          kind.__bases__ = old
      for v, (kind, attributes) in zip(variables, before, strict=True):
        v.__class__ = kind
        vars(v).clear()
        vars(v).update(attributes, has_stood_in=True)


class _StandIn(internals.ResourceVariable):
  """The class of a variable while it stands for `present[place]`."""

  @property
  def handle(self):
    # Keras puts some operations onto the device of this.
    return self.present[self.place]

  def _read_variable_op(self, no_copy=False):
    return self.present[self.place]

  def sparse_read(self, indices, name=None):
    return tf.gather(self.present[self.place], indices, name=name)

  def gather_nd(self, indices, name=None):
    return tf.gather_nd(self.present[self.place], indices, name=name)

  def assign(self, value, use_locking=None, name=None, read_value=True):
    if tf.compat.v1.get_default_graph() is not self.home:
      raise ValueError(
        f'{self.name!r} is assigned in a branch or loop: use tf.where instead.'
      )
    value = tf.cast(value, self.dtype)
    self.present[self.place] = tf.ensure_shape(value, self.shape)
    return self.present[self.place]

  def assign_add(self, delta, use_locking=None, name=None, read_value=True):
    return self.assign(self.value() + tf.cast(delta, self.dtype))

  def assign_sub(self, delta, use_locking=None, name=None, read_value=True):
    return self.assign(self.value() - tf.cast(delta, self.dtype))
