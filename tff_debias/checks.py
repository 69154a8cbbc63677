"""Checks of arguments and of tensors, and the wording of errors."""

import math
import numbers
from typing import Any

import tensorflow as tf


def check_type(name: str, value: Any, expected: type[Any]) -> None:
  """Raises a `TypeError` if `value` is not of the type.

  Args:
    name: The name of the argument.
    value: Its value.
    expected: The type.
  """
  if not isinstance(value, expected):
    raise TypeError(
      f'{name} must be a {expected.__module__}.{expected.__qualname__}, got'
      f' {value!r}.'
    )


class _NoNumberError(TypeError, ValueError):
  """An argument that must be a number is none."""


def check_number(
  name: str, value: Any, *, positive: bool = False, finite: bool = True
) -> None:
  """Raises a `ValueError` if `value` is not a nonnegative number.

  Args:
    name: The name of the argument.
    value: Its value. If it is no number, the error is a `TypeError` too.
    positive: Whether it must not be 0.
    finite: Whether it must not be infinite.
  """
  wanted = (
    f'a {"positive" if positive else "nonnegative"}'
    f'{" finite" if finite else ""} number'
  )
  _check_kind(name, value, numbers.Real, wanted)
  is_right = value > 0 if positive else value >= 0
  if not is_right or (finite and math.isinf(value)):
    raise ValueError(f'{name} must be {wanted}, got {value!r}.')


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
  """Raises a `ValueError` if `value` is not an integer of at least `minimum`.

  Args:
    name: The name of the argument.
    value: Its value. If it is no integer, the error is a `TypeError` too.
    minimum: The smallest right value.
  """
  _check_kind(name, value, numbers.Integral, 'an integer')
  if value < minimum:
    raise ValueError(f'{name} must be at least {minimum}, got {value!r}.')


def _check_kind(name: str, value: Any, kind: type[Any], wanted: str) -> None:
  if not isinstance(value, kind) or isinstance(value, bool):
    raise _NoNumberError(f'{name} must be {wanted}, got {value!r}.')


def ensure(condition: tf.Tensor, message: list[Any], value: Any) -> Any:
  """Returns `value`, and fails with a message if the condition is false.

  Args:
    condition: A bool scalar.
    message: Texts, and tensors of strings or int32. TensorFlow puts a check
      with other tensors into a branch, and its optimizer removes the branch.
    value: A structure of tensors. In a graph, what follows must be made of the
      result, or nothing is checked.

  Returns:
    The value.

  Raises:
    tf.errors.InvalidArgumentError: Where the graph runs.
  """
  check = tf.debugging.Assert(condition, message)
  with tf.control_dependencies([] if check is None else [check]):
    return tf.nest.map_structure(tf.identity, value)


def first_line(error: BaseException) -> str:
  """The first line of an error's message, without a period at its end.

  The later lines of TensorFlow's messages are about its own code.

  Args:
    error: The error.

  Returns:
    The line, or the name of the error's class if the message is empty.
  """
  lines = str(error).strip().splitlines() or ['']
  return lines[0].rstrip('.') or type(error).__name__
