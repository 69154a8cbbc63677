import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import processes
import pytest
import tensorflow_federated as tff

from tff_debias import runtime as runtime_lib
from tff_debias.runtime import worker as worker_lib

only_root = pytest.mark.skipif(
  os.getuid() != 0, reason='only root can act as somebody else'
)
_CONNECT = """
import os, socket, sys
if len(sys.argv) > 2:
  os.setgroups([])
  os.setgid(int(sys.argv[2]))
  os.setuid(int(sys.argv[2]))
family, address = socket.AF_UNIX, sys.argv[1].removeprefix('unix:')
if address == sys.argv[1]:
  family, (host, port) = socket.AF_INET, address.split(':')
  address = host, int(port)
try:
  with socket.socket(family) as connection:
    connection.settimeout(10)
    connection.connect(address)
  print('connected')
except OSError as e:
  print(type(e).__name__)
"""


def network_folders():
  return glob.glob(f'{tempfile.gettempdir()}/tff_worker_{os.getpid()}_*')


def tcp_listeners(pid, seen_by):
  """The TCP ports at which a process listens, as another process sees it."""
  inodes = set()
  for descriptor in os.scandir(f'/proc/{pid}/fd'):
    with contextlib.suppress(FileNotFoundError):
      found = re.fullmatch(r'socket:\[(\d+)\]', os.readlink(descriptor.path))
      inodes.update(found.groups() if found else ())
  ports = set()
  for name in ('tcp', 'tcp6'):
    with open(f'/proc/{seen_by}/net/{name}') as file:
      for line in file.readlines()[1:]:
        _, address, _, state, *_, inode = line.split()[:10]
        if inode in inodes and state == '0A':
          ports.add(int(address.split(':')[1], 16))
  return ports


def connect(address, user=None, prefix=()):
  """Connects in a process of its own; returns the outcome."""
  arguments = [address] if user is None else [address, str(user)]
  return subprocess.run(
    [*prefix, sys.executable, '-I', '-S', '-c', _CONNECT, *arguments],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()


@pytest.fixture
def worker(request):
  with contextlib.closing(
    runtime_lib.Worker(worker_network=request.param)
  ) as worker:
    yield worker


def both(*expected):
  """The worker in each network, and a value for each."""
  return pytest.mark.parametrize(
    ('worker', 'expected'),
    zip(('private', 'shared'), expected, strict=True),
    indirect=['worker'],
  )


@both(0, 1)
def test_a_private_worker_listens_in_a_network_of_its_own(worker, expected):
  assert len(tcp_listeners(worker.pid, seen_by=worker.pid)) == 1
  assert len(tcp_listeners(worker.pid, seen_by=os.getpid())) == expected


@only_root
@both('PermissionError', 'connected')
def test_another_user_cannot_connect_to_a_private_worker(worker, expected):
  assert connect(worker.address) == 'connected'
  assert connect(worker.address, user=65534) == expected


@pytest.fixture
def other_network():
  """The name of a network namespace that reaches this one at 169.254.77.1."""
  name = f'tff{os.getpid()}'
  commands = f"""
    ip netns add {name}
    ip link add {name}a type veth peer name {name}b netns {name}
    ip addr add 169.254.77.1/30 dev {name}a
    ip link set {name}a up
    ip -n {name} addr add 169.254.77.2/30 dev {name}b
    ip -n {name} link set {name}b up"""
  try:
    for command in commands.strip().split('\n'):
      subprocess.run(command.split(), check=True)
    yield name
  finally:
    # With it go both ends of the link.
    subprocess.run(['ip', 'netns', 'del', name])


@only_root
@pytest.mark.skipif(not shutil.which('ip'), reason='needs iproute2')
@both('ConnectionRefusedError', 'connected')
def test_another_machine_cannot_connect_to_a_private_worker(
  worker, expected, other_network
):
  (port,) = tcp_listeners(worker.pid, seen_by=worker.pid)
  found = connect(
    f'169.254.77.1:{port}', prefix=['ip', 'netns', 'exec', other_network]
  )
  assert found == expected


@pytest.mark.parametrize('victim', ['worker', 'proxy'])
def test_worker_and_proxy_end_together(victim):
  before = network_folders()
  with contextlib.closing(runtime_lib.Worker()) as worker:
    (proxy,) = processes.worker_pids(worker.pid)
    (folder,) = set(network_folders()) - set(before)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    os.kill(proxy if victim == 'proxy' else worker.pid, signal.SIGKILL)
    processes.wait_until(
      lambda: not worker.is_alive and not processes.is_alive(proxy)
    )
    assert 'ended with -9' in worker.condition
  assert network_folders() == before


@pytest.mark.slow
def test_says_when_the_system_permits_no_private_network():
  """Here the system is a namespace of users that may not make others."""
  if subprocess.run(['unshare', '-r', 'true']).returncode:
    pytest.skip('needs a namespace of users')
  program = (
    'import computations; from tff_debias import runtime\n'
    'with runtime.local_context(): print(computations.total([1, 2]))'
  )
  forbid = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
  ran = subprocess.run(
    [
      *('unshare', '-r', 'sh', '-c', forbid, '-'),
      *(sys.executable, '-c', program),
    ],
    env={
      **os.environ,
      'TF_CPP_MIN_LOG_LEVEL': '3',
      'PYTHONPATH': os.path.dirname(__file__),
    },
    capture_output=True,
    text=True,
  )
  assert ran.stdout == '3\n', ran.stderr
  (line,) = ran.stderr.splitlines()
  assert 'open to every user' in line and 'No space left' in line
  assert "worker_network='shared' accepts that" in line


def test_says_when_the_temporary_folder_is_too_long(
  tmp_path, monkeypatch, caplog
):
  folder = tmp_path / ('x' * 100)
  folder.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(folder))
  with contextlib.closing(runtime_lib.Worker()) as worker:
    assert worker.address.startswith('localhost:')
  assert 'TMPDIR can name a shorter folder' in caplog.text
  assert os.listdir(folder) == []


def test_refuses_another_network():
  with pytest.raises(ValueError, match="'private' or 'shared', got 'public'"):
    runtime_lib.Worker(worker_network='public')


@pytest.mark.parametrize('network', ['private', 'shared'])
@pytest.mark.parametrize(
  ('binary', 'mode', 'message'),
  [
    (None, 0, 'ended with 1. It said: .*No such file'),
    ('', 0o600, 'ended with 1. It said: .*Permission denied'),
    ('another machine', 0o700, 'ended with 1. It said: .*Exec format error'),
    ('#!/bin/sh\necho no GPU; exit 7', 0o700, 'ended with 7. It said: no GPU'),
    ('#!/bin/sh\nexec sleep 99', 0o700, 'is not ready after .* said: nothing'),
  ],
)
def test_a_worker_that_does_not_start_says_why(
  network, binary, mode, message, monkeypatch, tmp_path
):
  path, started = tmp_path / 'worker_binary', []
  if binary is not None:
    path.write_text(binary)
    path.chmod(mode)

  def start(*args):
    started.append(original(*args))
    return started[-1]

  original = worker_lib._start
  monkeypatch.setattr(worker_lib, '_start', start)
  monkeypatch.setattr(worker_lib, '_BINARY', str(path))
  if 'ready' in message:
    monkeypatch.setattr(worker_lib, 'READY_WITHIN_SECONDS', 0.3)
  folders = network_folders()
  before = tff.framework.get_context_stack().current
  with (
    pytest.raises(runtime_lib.WorkerError, match=message),
    runtime_lib.local_context(worker_network=network),
  ):
    pass
  assert tff.framework.get_context_stack().current is before
  ((process, _),) = started
  assert process.returncode is not None
  assert network_folders() == folders


@pytest.mark.parametrize('network', ['private', 'shared'])
def test_a_proxy_is_not_asked_for_a_worker_here(network, monkeypatch):
  monkeypatch.setattr(worker_lib, 'READY_WITHIN_SECONDS', 10)
  monkeypatch.setenv('http_proxy', 'http://localhost:9')
  for name in ('no_proxy', 'no_grpc_proxy'):
    monkeypatch.delenv(name, raising=False)
  runtime_lib.Worker(worker_network=network).close()
