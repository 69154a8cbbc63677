"""The table of methods, from which flags, titles and lines are derived.

A correction that the library gains is a row of `CORRECTIONS`, and a method with
it a row of `METHODS`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tasks import catalog


class Method(NamedTuple):
  """A method: its correction, and whether it personalizes in training.

  `line` is the place of its line in `figures.LINES`, the same in all figures.
  """

  title: str
  correction: str
  personalizes: bool
  line: int


class Part(NamedTuple):
  """A class of `tff_debias`, and the setting that each of its arguments is."""

  class_name: str
  arguments: Mapping[str, str] = {}


METHODS: Mapping[str, Method] = {
  'fed_avg': Method('FedAvg', 'none', False, 3),
  'per_fed_avg': Method('Per-FedAvg', 'none', True, 1),
  'fed_prox': Method('FedProx', 'prox', False, 4),
  'fed_dyn': Method('FedDyn', 'dyn', False, 5),
  'pfl_dyn': Method('PFLDyn', 'dyn', True, 0),
  'scaffold': Method('SCAFFOLD', 'scaf', False, 6),
  'pfl_scaf': Method('PFLScaf', 'scaf', True, 2),
}

CORRECTIONS: Mapping[str, Part] = {
  'none': Part('NoCorrection'),
  'dyn': Part('Dyn', {'alpha': 'alpha'}),
  'scaf': Part('Scaf', {'num_steps': 'local_steps'}),
  'prox': Part('Prox', {'mu': 'mu'}),
}

PERSONALIZATIONS: Mapping[str, Part] = {
  'none': Part('NoPersonalization'),
  'maml': Part(
    'Maml',
    {
      'num_steps': 'maml_steps',
      'learning_rate': 'maml_learning_rate',
      'first_order': 'maml_first_order',
    },
  ),
  'proto': Part('Proto'),
}

#: The parts by the setting that names one.
PARTS: Mapping[str, Mapping[str, Part]] = {
  'correction': CORRECTIONS,
  'personalization': PERSONALIZATIONS,
  'tested_personalization': {
    name: part for name, part in PERSONALIZATIONS.items() if name != 'none'
  },
}

#: The settings that have an effect only with some values of another one.
ONLY_WITH: Mapping[str, tuple[str, tuple[str, ...]]] = {
  'classes_per_client': ('partition', ('acid', 'alid')),
  'concentration': ('partition', ('dirichlet',)),
  **{
    setting: (kind, (name,))
    for kind in ('correction', 'personalization')
    for name, part in PARTS[kind].items()
    for setting in part.arguments.values()
    if setting != 'local_steps'  # Every method has local steps.
  },
}

_TITLES = {
  **{name: method.title for name, method in METHODS.items()},
  **{name: row.title for name, row in catalog.TASKS.items()},
  'none': 'No personalization',
  'maml': 'MAML',
  'proto': 'Prototypes',
}


def find(correction: str | None, personalization: str | None) -> str | None:
  """The method with a correction that personalizes, or not; `None` for none."""
  parts = (correction, personalization != 'none')
  found = [name for name, row in METHODS.items() if row[1:3] == parts]
  return found[0] if found else None


def title(name: str) -> str:
  """The name in papers of a method, a personalization or a task."""
  return _TITLES.get(name, name)
