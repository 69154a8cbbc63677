"""The only file that imports private modules; a new TensorFlow may break it."""

# ruff: noqa: F401
from keras.src.backend import deprecated_internal_set_learning_phase
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.python.autograph.core import ag_ctx as autograph_context
from tensorflow.python.eager.cancellation import CancellationManager
from tensorflow.python.eager.context import anonymous_name
from tensorflow.python.eager.context import context as eager_context
from tensorflow.python.eager.context import eager_mode
from tensorflow.python.eager.execute import execute_with_cancellation
from tensorflow.python.eager.polymorphic_function.atomic_function import (
  from_func_graph,
)
from tensorflow.python.ops.lookup_ops import LookupInterface
from tensorflow.python.ops.resource_variable_ops import ResourceVariable
