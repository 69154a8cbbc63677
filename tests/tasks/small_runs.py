"""Runs of a few seconds, which several files of tests read, and programs."""

import contextlib
import importlib
from unittest import mock

import tensorflow as tf

from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib
from tasks.runs import training

ROUNDS = 4

#: The settings of the runs that tests share; the labels of one are true, and
#: those of the other are the devices' own.
OPTIONS = {
  'proto': {'personalization': 'proto'},
  'maml': {
    'personalization': 'maml',
    'partition': 'alid',
    'maml_steps': 2,
    'maml_learning_rate': 0.1,
  },
}

_OWN_MODULE = """
import dataclasses
import tensorflow as tf
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

def network(num_outputs, width=4):
  return tf.keras.Sequential([
    tf.keras.layers.Input([2, 3]),
    tf.keras.layers.Flatten(),
    tf.keras.layers.Dense(width, 'relu'),
    tf.keras.layers.Dense(num_outputs),
  ])
"""


def own_module(folder, monkeypatch):
  """Writes a module there that Python finds; gives its name."""
  name = f'own_{abs(hash(folder))}'
  (folder / f'{name}.py').write_text(_OWN_MODULE)
  monkeypatch.syspath_prepend(folder)
  return name


def prepare(program, *flags):
  """The job of a program; it runs in this process."""
  return importlib.import_module(f'tasks.{program}').prepare(flags)


def experiment(**options):
  """An experiment of a second or two: digits, with true labels."""
  options = {
    'partition': 'acid',
    'personalization': 'proto',
    'num_clients': 12,
    'clients_per_round': 2,
    'classes_per_client': 3,
    'held_out_share': 0.25,
    'local_steps': 2,
    'rounds_per_evaluation': 2,
    **options,
  }
  if 'method' in options:
    plain = options['method'] in ('fed_avg', 'fed_prox', 'scaffold')
    options['personalization'] = 'none' if plain else 'proto'
  return experiment_lib.Experiment(settings_lib.resolve(**options))


def descend(network, x, y, learning_rate, bound=10.0):
  """A step of gradient descent on all examples; the gradient is clipped."""
  with tf.GradientTape() as tape:
    losses = tf.keras.losses.sparse_categorical_crossentropy(
      y, network(x), from_logits=True
    )
    value = tf.reduce_mean(losses)
  gradients = tape.gradient(value, network.trainable_variables)
  gradients, _ = tf.clip_by_global_norm(gradients, bound)
  for variable, g in zip(network.trainable_variables, gradients, strict=True):
    variable.assign_sub(learning_rate * g)


def accuracy(network, x, y):
  """The accuracy of a network of Keras."""
  return (network(x).numpy().argmax(axis=1) == y).mean()


_evaluations = {}


def train(folder, personalization, rounds=ROUNDS, from_round=None):
  """Trains with a checkpoint every two rounds; gives the metrics.

  It does so in the context of the tests, which keeps the compiled evaluation.
  """
  made = experiment(**OPTIONS[personalization])
  if personalization not in _evaluations:
    _evaluations[personalization] = made.build_evaluation()
  made.build_evaluation = lambda: _evaluations[personalization]
  with mock.patch.object(
    training.runtime, 'local_context', contextlib.nullcontext
  ):
    return training.run(made, folder, rounds, 2, from_round)
