"""Runs of a few seconds, which several files of tests read, and programs."""

import os
import subprocess
import sys

from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
from tasks.runs import training

ROUNDS = 4

_OWN_MODULE = """
import dataclasses
import tff_debias

@dataclasses.dataclass(frozen=True)
class Pull(tff_debias.Correction):
  gamma: float
  beside: float = 0.0

  def gradient_term(self, *arguments, **named):
    weights = arguments[2] if len(arguments) > 2 else named['weights']
    return tuple(self.gamma * w for w in weights)

class FewSteps(tff_debias.Maml):
  pass
"""


def own_module(folder):
  """Writes `my_module` there; gives the environment in which it is found."""
  (folder / 'my_module.py').write_text(_OWN_MODULE)
  return os.environ | {'PYTHONPATH': str(folder)}


def run_program(name, *flags, options=(), env=None):
  """The process of a program of `tasks`, ended; `options` are of Python."""
  return subprocess.run(
    [sys.executable, *options, '-m', f'tasks.{name}', *flags],
    capture_output=True,
    text=True,
    timeout=300,
    env=env,
  )


def experiment(**options):
  """An experiment of a second or two."""
  options = {
    'num_clients': 12,
    'clients_per_round': 2,
    'held_out_share': 0.25,
    'local_steps': 2,
    'rounds_per_evaluation': 2,
    **options,
  }
  return experiment_lib.Experiment(settings_lib.Settings(**options))


def train(path, personalization):
  """The folder of a finished run, with all of its checkpoints."""
  folder = folder_lib.RunFolder(path)
  steps = {'maml_steps': 5} if personalization == 'maml' else {}
  trained = experiment(personalization=personalization, **steps)
  training.run(trained, folder, ROUNDS, 2)
  return folder
