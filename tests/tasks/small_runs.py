"""Runs of a few seconds, which several files of tests read."""

from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
from tasks.runs import training

ROUNDS = 4


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
  training.run(trained, folder, ROUNDS, lambda *_: None, 2)
  return folder
