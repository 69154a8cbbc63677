"""Kills runs of `tasks.train` at any moment; the same command must go on.

Takes hours, so it runs on request: `pytest -m soak -n 0 -s`. The environment
variables SOAK_TRAINER_KILLS and SOAK_CALL_KILLS say how many of each kind,
SOAK_SEED which ones.
"""

import collections
import csv
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.soak

_FLAGS = [
  '--num_clients=8',
  '--clients_per_round=3',
  '--local_steps=3',
  '--rounds_per_checkpoint=3',
  '--rounds_per_evaluation=2',
  '--rounds=40',
  '--nobaseline',
]
# The system calls before which a process is killed, and how many of each a
# thread may do before: there are few renames, and thousands of opened files.
_CALLS = {
  'rename': 15,
  'unlink': 15,
  'unlinkat': 15,
  'rmdir': 5,
  'mkdir': 15,
  'fsync': 60,
  'ftruncate': 1,
  'pwrite64': 15,
  'openat': 4000,
  'close': 4000,
}
_ENDED_WITHIN_SECONDS = 30


def number(name, default):
  return int(os.environ.get(f'SOAK_{name}', default))


class Trainer:
  """A process of `tasks.train`, with those that it starts."""

  def __init__(self, folder, *before):
    # It marks all processes that descend from this one.
    self._mark = f'SOAK_MARK={uuid.uuid4().hex}'
    name, value = self._mark.split('=')
    self._process = subprocess.Popen(
      [
        *(*before, sys.executable, '-m', 'tasks.train'),
        *(f'--output_dir={folder}', *_FLAGS),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      env={**os.environ, name: value},
    )
    os.set_blocking(self._process.stdout.fileno(), False)
    self._said = b''

  @property
  def has_ended(self):
    self._said += self._process.stdout.read() or b''
    return self._process.poll() is not None

  @property
  def return_code(self):
    return self._process.returncode

  @property
  def said(self):
    assert self.has_ended
    return self._said.decode(errors='replace')

  def kill(self):
    self._process.kill()
    self._process.wait()

  def wait(self):
    while not self.has_ended:
      time.sleep(0.1)
    return self.return_code

  def processes(self):
    """The programs of the living processes, by their ids."""
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
      try:
        folder = pathlib.Path('/proc', pid)
        if self._mark.encode() in (folder / 'environ').read_bytes():
          found[int(pid)] = os.readlink(folder / 'exe')
      except OSError:
        pass  # It has ended, or is not ours.
    return found

  def left(self):
    """The processes that are there although this one has ended."""
    deadline = time.monotonic() + _ENDED_WITHIN_SECONDS
    while (found := self.processes()) and time.monotonic() < deadline:
      time.sleep(0.2)
    return found


def rows(folder):
  """The metrics but for the times, and for what follows a half-written line."""
  try:
    with open(folder / 'metrics.csv', newline='') as file:
      content = file.read()
  except FileNotFoundError:
    return []
  lines = content[: content.rfind('\n') + 1].splitlines()
  return [
    {k: v for k, v in row.items() if 'time' not in k}
    for row in csv.DictReader(lines)
  ]


def weights(folder):
  return tf.keras.models.load_model(folder / 'meta_model.keras').get_weights()


def is_same(folder, whole):
  pairs = zip(weights(folder), weights(whole), strict=True)
  return rows(folder) == rows(whole) and all(
    np.array_equal(found, right) for found, right in pairs
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a run that was never disturbed."""
  folder = tmp_path_factory.mktemp('soak') / 'whole'
  trainer = Trainer(folder)
  assert trainer.wait() == 0, trainer.said
  assert not trainer.left()
  return folder


class Tally:
  """Counts what has happened, and checks each run that ends."""

  def __init__(self, whole, folder):
    self.counts = collections.Counter()
    self.folder = folder
    self._whole = whole
    self.trouble = []

  def after_kill(self, trainer, how):
    """Counts a process that was killed or has ended; `how` is for people."""
    left = trainer.left()
    if left:
      self._note('processes left', f'after {how}: {left}')
    return_code = trainer.return_code
    if return_code not in (0, -signal.SIGKILL):
      # After an error the same command must go on.
      again = Trainer(self.folder)
      return_code = again.wait()
      self.counts['errors'] += 1
    if return_code == 0:
      self.counts['runs ended'] += 1
      if not is_same(self.folder, self._whole):
        self._note('wrong numbers', f'after {how}')
      shutil.rmtree(self.folder)
    elif return_code == -signal.SIGKILL:
      self.counts['kills'] += 1
    else:
      said = f'{trainer.said[-2000:]}\nThen: {again.said[-2000:]}'
      self._note('stuck', f'after {how}: {said}')
      shutil.move(self.folder, f'{self.folder}_stuck{len(self.trouble)}')
    print(f'{how}: {dict(self.counts)}', flush=True)

  def finish(self):
    """Lets the last run end, and reports."""
    trainer = Trainer(self.folder)
    trainer.wait()
    self.after_kill(trainer, 'no kill')
    assert not self.trouble, '\n'.join(self.trouble)

  def _note(self, kind, text):
    self.counts[kind] += 1
    self.trouble.append(f'{kind} {text}')


def test_kills_of_the_trainer_at_any_moment(whole, tmp_path):
  tally = Tally(whole, tmp_path / 'run')
  chance = random.Random(number('SEED', 0))
  while tally.counts['kills'] < number('TRAINER_KILLS', 200):
    trainer = Trainer(tally.folder)
    # Half of them in its beginning, half within some rounds.
    begun = len(rows(tally.folder))
    delay = chance.uniform(0, 30)
    at, more = time.monotonic() + delay, chance.randrange(1, 12)
    in_rounds = chance.random() < 0.5
    if in_rounds:
      while not trainer.has_ended and len(rows(tally.folder)) == begun:
        time.sleep(0.01)
      at = time.monotonic() + more * chance.uniform(0, 0.5)
    while not trainer.has_ended and time.monotonic() < at:
      time.sleep(0.005)
    trainer.kill()
    moment = 'in its rounds' if in_rounds else f'after {delay:.1f} s'
    tally.after_kill(trainer, moment)
  tally.finish()


@pytest.mark.skipif(not shutil.which('strace'), reason='strace is missing')
def test_kills_of_the_trainer_before_a_system_call(whole, tmp_path):
  tally = Tally(whole, tmp_path / 'run')
  chance = random.Random(number('SEED', 0))
  while tally.counts['kills'] < number('CALL_KILLS', 100):
    call = chance.choice(list(_CALLS))
    when = chance.randrange(1, _CALLS[call] + 1)
    trainer = Trainer(
      tally.folder,
      *('strace', '-f', '-o', '/dev/null'),
      *('-e', f'trace={call}'),
      *('-e', f'inject={call}:signal=KILL:when={when}'),
    )
    trainer.wait()
    tally.after_kill(trainer, f'{call} {when}')
  tally.finish()
