"""The part of an error or of a program's output that a user can read."""

import grpc


def first_line(error: BaseException) -> str:
  """The first line of an error's message; TFF's further ones name graphs."""
  message = str(error)
  if isinstance(error, grpc.RpcError):
    message = error.details() or str(error.code())
  first = message.strip().split('\n')[0].removesuffix('.')
  return first.removeprefix('Failed to run computation: ') or repr(error)


def last_line(output: str) -> str:
  """The last line of a program's output, in which it names its error."""
  return output.replace('\r', '\n').strip().split('\n')[-1]
