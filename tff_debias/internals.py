"""The only file that imports private modules; a new TensorFlow may break it."""

# ruff: noqa: F401
from tensorflow.python.eager.cancellation import CancellationManager
from tensorflow.python.eager.context import context as eager_context
from tensorflow.python.eager.execute import execute_with_cancellation
