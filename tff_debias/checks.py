"""Checks of arguments, with errors that name the value and what is right."""

import math
import numbers
from typing import Any


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


def check_number(
  name: str, value: Any, *, positive: bool = False, finite: bool = True
) -> None:
  """Raises a `ValueError` if `value` is not a nonnegative number.

  Args:
    name: The name of the argument.
    value: Its value.
    positive: Whether it must not be 0.
    finite: Whether it must not be infinite.
  """
  is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if (
    not is_number
    or math.isnan(value)
    or value < 0
    or (positive and value == 0)
    or (finite and math.isinf(value))
  ):
    raise ValueError(
      f'{name} must be a {"positive" if positive else "nonnegative"}'
      f'{" finite" if finite else ""} number, got {value!r}.'
    )


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
  """Raises a `ValueError` if `value` is not an integer of at least `minimum`.

  Args:
    name: The name of the argument.
    value: Its value.
    minimum: The smallest right value.
  """
  is_integer = isinstance(value, numbers.Integral)
  if not is_integer or isinstance(value, bool) or value < minimum:
    raise ValueError(
      f'{name} must be an integer of at least {minimum}, got {value!r}.'
    )
