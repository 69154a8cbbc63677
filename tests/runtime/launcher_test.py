import os
import pathlib
import signal
import socket
import subprocess
import sys

import processes
import pytest

_LAUNCHER = (
  pathlib.Path(__file__).parents[2] / 'tff_debias' / 'runtime' / 'launcher.py'
)
# As an ordinary user, who needs a namespace of users for one of networks.
_ORDINARY = ('unshare', '-U', '--map-user=1000', '--map-group=1000')
_ECHO = """
import os, socket
print(os.getuid(), socket.if_nameindex(), flush=True)
listener = socket.create_server(('', 8000))
while True:
  connection, _ = listener.accept()
  while data := connection.recv(2**20):
    connection.sendall(data)
"""


def launch(*arguments, prefix=(), **options):
  return subprocess.Popen(
    [
      *(*prefix, sys.executable, '-I', '-S', _LAUNCHER, str(os.getpid())),
      *arguments,
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has namespaces')
@pytest.mark.parametrize(
  ('prefix', 'user'), [((), os.getuid()), (_ORDINARY, 1000)]
)
def test_forwards_a_unix_socket_into_a_private_network(prefix, user, tmp_path):
  if subprocess.run([*_ORDINARY, 'unshare', '-rn', 'true']).returncode:
    pytest.skip('needs namespaces of users and of networks')
  folder = tmp_path / 'folder'
  folder.mkdir()
  path = str(folder / 'socket')
  listener = socket.socket(socket.AF_UNIX)
  listener.bind(path)
  listener.listen()
  status, proxy_status = os.pipe()
  descriptors = listener.fileno(), proxy_status
  process = launch(
    *('--private', folder, *map(str, descriptors), '8000'),
    *(sys.executable, '-I', '-S', '-c', _ECHO),
    prefix=prefix,
    pass_fds=descriptors,
  )
  listener.close()
  os.close(proxy_status)
  with open(status, 'rb') as lines, process:
    try:
      assert lines.readline() == b'\n'
      assert process.stdout.readline() == f"{user} [(1, 'lo')]\n"
      for _ in range(2):
        with socket.socket(socket.AF_UNIX) as connection:
          connection.connect(path)
          sent = os.urandom(100_000)
          connection.sendall(sent)
          assert connection.recv(len(sent), socket.MSG_WAITALL) == sent
    finally:
      process.kill()
    # The end of the proxy, which removes the folder first.
    assert lines.read() == b''
  assert not folder.exists()


def test_the_command_ends_with_its_parent():
  program = (
    'import subprocess, sys, time;'
    'p = subprocess.Popen(sys.argv[1:3] + ["-S", sys.argv[3],'
    ' str(__import__("os").getpid()), "/bin/sleep", "1000"]);'
    'print(p.pid, flush=True); time.sleep(1000)'
  )
  with subprocess.Popen(
    [sys.executable, '-c', program, sys.executable, '-I', _LAUNCHER],
    stdout=subprocess.PIPE,
    text=True,
  ) as parent:
    pid = int(parent.stdout.readline())
    processes.wait_until(
      lambda: 'sleep' in pathlib.Path(f'/proc/{pid}/comm').read_text()
    )
    os.kill(parent.pid, signal.SIGKILL)
  processes.wait_until(lambda: not processes.is_alive(pid))


def test_says_why_a_command_cannot_run(tmp_path):
  with launch(tmp_path / 'missing') as process:
    assert 'No such file' in process.stdout.read()
  assert process.returncode == 1
