"""Imports the TensorFlow graphs of TFF as functions of this process."""

from collections.abc import Iterable
import itertools
from typing import Any
from typing import TypeAlias

import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import internals

Tensors: TypeAlias = list[tf.Tensor]

# A VarHandleOp of this name makes a new variable whenever it runs.
_ANONYMOUS = b'cd2c89b7-88b7-44c8-ad83-06c2a9158347'
_import_ids = itertools.count()

#: TensorFlow's Grappler optimizes the step of a client, a function of its own.
#: To optimize the graph around it takes a second, and gains nothing. TFF's own
#: call of it would also inline functions and forget marks such as `_noinline`.
NO_GRAPPLER = tf.compat.v1.ConfigProto()
NO_GRAPPLER.graph_options.rewrite_options.disable_meta_optimizer = True


class Function:
  """A TensorFlow computation of TFF, as a function of flat lists of tensors."""

  def __init__(self, comp: tff.framework.ConcreteComputation):
    proto = tff.framework.ConcreteComputation.get_proto(comp).tensorflow
    graph_def = tf.compat.v1.GraphDef()
    proto.graph_def.Unpack(graph_def)
    _make_function_names_unique(graph_def)
    _make_variables_local(graph_def, proto.initialize_op)
    bindings = [_tensor_names(b) for b in (proto.parameter, proto.result)]
    _remove_unneeded(graph_def, itertools.chain(*bindings))
    for function in graph_def.library.function:
      internals.eager_context().add_function_def(function)
    # Not a tf.function, which would order stateful operations its own way.
    with tf.__internal__.FuncGraph('tff').as_default() as graph:
      tf.graph_util.import_graph_def(graph_def, name='')
      graph.inputs, outputs = (
        [graph.get_tensor_by_name(name) for name in names] for names in bindings
      )
      graph.outputs = _after_freeing_variables(outputs)
    # Kept, because its deletion removes the function from TensorFlow.
    self._function = internals.from_func_graph(
      f'tff_{next(_import_ids)}', graph, {}
    )
    self._name = self._function.name.decode()
    self._num_outputs = len(outputs)
    config = tf.compat.v1.ConfigProto.FromString(
      internals.eager_context().function_call_options.config_proto_serialized
    )
    config.MergeFrom(NO_GRAPPLER)
    self._attributes = (
      'executor_type',
      '',
      'config_proto',
      config.SerializeToString(),
    )

  def __call__(
    self, inputs: Tensors, cancellation: internals.CancellationManager
  ) -> Tensors:
    """Runs the function until it ends or is canceled."""
    # To call the ConcreteFunction takes a millisecond more for 30 tensors, and
    # hands over the CancellationManager in a variable that all threads share.
    return internals.execute_with_cancellation(
      self._name,
      self._num_outputs,
      inputs,
      self._attributes,
      internals.eager_context(),
      cancellation,
    )


def _tensor_names(binding: Any) -> list[str]:
  """The names of the tensors of a parameter or result, in their order."""
  match binding.WhichOneof('binding'):
    case 'tensor':
      return [binding.tensor.tensor_name]
    case 'sequence':
      return [binding.sequence.variant_tensor_name]
    case 'struct':
      return [n for e in binding.struct.element for n in _tensor_names(e)]
  return []


def _make_function_names_unique(graph_def: tf.compat.v1.GraphDef) -> None:
  """Renames the functions of a graph.

  A process has one function of a name, but TFF and Grappler change functions
  without giving them other names.
  """
  library = graph_def.library
  prefix = f'tff{next(_import_ids)}_'
  old_names = [f.signature.name for f in library.function]
  names = {name: prefix + name for name in old_names}
  for node in itertools.chain(
    graph_def.node, *(f.node_def for f in library.function)
  ):
    node.op = names.get(node.op, node.op)
    for attribute in node.attr.values():
      for function in (attribute.func, *attribute.list.func):
        if function.name in names:
          function.name = names[function.name]
  for function in library.function:
    function.signature.name = names[function.signature.name]
  for gradient in library.gradient:
    gradient.function_name = names[gradient.function_name]
    gradient.gradient_func = names[gradient.gradient_func]


def _make_variables_local(
  graph_def: tf.compat.v1.GraphDef, initialize_op: str
) -> None:
  """Gives every call variables of its own, and initializes them first.

  TFF runs a graph in a session, whose variables are its own. In a process those
  of one name are one, also for two clients that run at the same time.
  """
  initialization = _ancestors(graph_def, {initialize_op} - {''})
  for node in graph_def.node:
    if node.op == 'VarHandleOp':
      node.attr['shared_name'].s = _ANONYMOUS
    if node.name not in initialization and _inputs(node) & initialization:
      node.input.append(f'^{initialize_op}')


def _remove_unneeded(
  graph_def: tf.compat.v1.GraphDef, tensor_names: Iterable[str]
) -> None:
  """Keeps the nodes that tensors are made of.

  A session runs no others, but a function runs all of its stateful operations.
  """
  needed = _ancestors(graph_def, {n.split(':')[0] for n in tensor_names})
  for place in reversed(range(len(graph_def.node))):
    if graph_def.node[place].name not in needed:
      del graph_def.node[place]
  for node in graph_def.node:
    # It may be colocated with one that is not needed.
    node.attr.pop('_class', None)


def _ancestors(
  graph_def: tf.compat.v1.GraphDef, names: Iterable[str]
) -> set[str]:
  """The names of nodes and of all nodes that they are made of."""
  inputs = {node.name: _inputs(node) for node in graph_def.node}
  found: set[str] = set()
  remaining = set(names)
  while remaining:
    found |= remaining
    remaining = set().union(*(inputs[name] for name in remaining)) - found
  return found


def _inputs(node: tf.compat.v1.NodeDef) -> set[str]:
  """The names of the nodes that a node reads or waits for."""
  return {name.lstrip('^').split(':')[0] for name in node.input}


def _after_freeing_variables(results: Tensors) -> Tensors:
  """The results, which are there once the graph's variables are freed."""
  operations = tf.compat.v1.get_default_graph().get_operations()
  with tf.control_dependencies(results):
    freed = [
      tf.raw_ops.DestroyResourceOp(resource=operation.outputs[0])
      for operation in operations
      if operation.type == 'VarHandleOp'
    ]
  with tf.control_dependencies(freed):
    return [tf.identity(result) for result in results]
