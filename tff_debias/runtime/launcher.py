"""Starts a program that ends with its parent; its network can be private.

It is a script, which `python -I -S` starts quickly:

    launcher.py PARENT COMMAND...
    launcher.py PARENT --private FOLDER LISTENER STATUS PORT COMMAND...

It runs between `fork` and `exec`. A `preexec_fn` of `subprocess` could deadlock
there, because the parent has threads.

With `--private` the command gets a network namespace of its own, which has
nothing but a loopback interface. A second process, the proxy, forwards each
connection to the inherited unix socket LISTENER to the command's port PORT in
there. To the inherited pipe STATUS goes one line: empty, or the reason why the
namespace could not be made, and then nothing is started. The proxy keeps the
pipe open as long as it lives. It ends with the command, and then removes the
FOLDER of the unix socket.

Only Linux kills a process when its parent ends. Elsewhere the command outlives
a parent that is killed.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_BUFFER_BYTES = 2**18


def main(parent: str, *command: str) -> None:
  """Becomes the command.

  Args:
    parent: The parent's process id.
    *command: The path of a program and its arguments, or `--private` and its
      arguments before them.
  """
  if command[0] == '--private':
    folder, listener, status, port = command[1:5]
    _enter_private_network(int(listener), int(status), int(port), folder)
    command = command[5:]
  end_with(int(parent), signal.SIGKILL)
  try:
    os.execv(command[0], command)
  except OSError as e:
    sys.exit(str(e))


def end_with(parent: int, signal_number: int) -> None:
  """Has this process signalled when the thread that started it ends."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
    # The parent may have ended before that call.
    if os.getppid() != parent:
      os._exit(1)


def _enter_private_network(
  listener: int, status: int, port: int, folder: str
) -> None:
  for descriptor in (listener, status):
    os.set_inheritable(descriptor, False)
  try:
    _make_namespace()
  except OSError as e:
    os.write(status, f'{e.strerror}\n'.encode())
    sys.exit(str(e))
  command = os.getpid()
  if os.fork() == 0:
    try:
      # A handler in Python would only run once `accept` returns.
      signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
      end_with(command, signal.SIGTERM)
      os.write(status, b'\n')
      server = socket.socket(fileno=listener)
      threading.Thread(target=_forward, args=(server, port)).start()
      signal.sigwait([signal.SIGTERM])
    finally:
      shutil.rmtree(folder, ignore_errors=True)
      os._exit(0)


def _make_namespace() -> None:
  """Leaves the host's network for a new one with a loopback interface."""
  libc = ctypes.CDLL(None, use_errno=True)
  # Root needs no namespace of users, in which it would own only root's files.
  if os.getuid() != 0 or libc.unshare(_CLONE_NEWNET) != 0:
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
      raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for name, text in (
      ('setgroups', 'deny'),
      ('uid_map', f'{user} {user} 1'),
      ('gid_map', f'{group} {group} 1'),
    ):
      with open(f'/proc/self/{name}', 'w') as file:
        file.write(text)
  with socket.socket() as any_socket:
    request = struct.pack('16sh14x', b'lo', _IFF_UP)
    fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def _forward(listener: socket.socket, port: int) -> None:
  """Serves for ever."""
  while True:
    outside, _ = listener.accept()
    inside = _connect(port)
    for ends in ((outside, inside), (inside, outside)):
      threading.Thread(target=_copy, args=ends, daemon=True).start()


def _connect(port: int) -> socket.socket:
  while True:
    try:
      inside = socket.create_connection(('127.0.0.1', port))
    except ConnectionRefusedError:  # The command does not listen yet.
      time.sleep(0.01)
      continue
    inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return inside


def _copy(source: socket.socket, target: socket.socket) -> None:
  buffer = memoryview(bytearray(_BUFFER_BYTES))
  try:
    while length := source.recv_into(buffer):
      target.sendall(buffer[:length])
  except OSError:
    pass  # One of the two ends is gone, so the other is closed too.
  for end in (source, target):
    try:
      end.shutdown(socket.SHUT_RDWR)
    except OSError:
      pass


if __name__ == '__main__':
  main(*sys.argv[1:])
