"""The only file that imports private modules of TFF; a new TFF may break it."""

# ruff: noqa: F401
from tensorflow_federated.proto.v0.executor_pb2 import DisposeExecutorRequest
from tensorflow_federated.python.core.impl.context_stack.runtime_error_context import (  # noqa: E501
  RuntimeErrorContext,
)
from tensorflow_federated.python.core.impl.executors.cardinalities_utils import (  # noqa: E501
  infer_cardinalities,
)
from tensorflow_federated.python.core.impl.types.type_analysis import (
  preorder_types,
)
