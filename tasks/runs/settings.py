"""Defines the settings of an experiment and the flags that give them.

Nothing here imports TensorFlow: `--help` and wrong flags are answered at once.
"""

import argparse
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import operator
from typing import Any

from tasks import catalog
from tasks import cli
from tasks.runs import components
from tasks.runs import errors
from tasks.runs import methods

_BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
  'above': operator.gt,
  'at_least': operator.ge,
  'below': operator.lt,
  'at_most': operator.le,
}

#: The settings that decide all others, and so name a run first.
MAIN = (
  'task',
  'partition',
  'method',
  'correction',
  'personalization',
  'tested_personalization',
)


def _setting(
  group: str, help_text: str, default: Any = None, **more: Any
) -> Any:
  """A field with the group and text of its flag, its `choices` or `_BOUNDS`."""
  metadata = {'group': group, 'help': help_text, **more}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The values of all settings that the numbers of an experiment depend on.

  Any may be `None`: it is not given, or has no effect with the others.
  `resolve` puts the task's defaults. A value that is wrong or has no effect is
  a `UserError`.
  """

  task: str = _setting(
    'what', 'The data and network.', 'digits', choices=catalog.TASKS
  )
  data_dir: str = _setting(
    'what', 'The folder of the data; «python -m tasks» says which task has one.'
  )
  network: str = _setting(
    'what',
    'In the place of the network of the task, one of your own: MODULE:FUNCTION.'
    ' The function takes the number of outputs and gives a Keras model.',
  )
  partition: str = _setting(
    'what',
    'How the data are split: acid (true labels), alid (each client relabels its'
    " classes), dirichlet, or natural (the data set's users).",
    choices=('acid', 'alid', 'dirichlet', 'natural'),
  )
  num_clients: int = _setting('what', 'The number m of clients.', at_least=1)
  classes_per_client: int = _setting(
    'what', 'The number of classes that a client holds.', at_least=1
  )
  concentration: float = _setting(
    'what', 'The parameter of the Dirichlet distribution.', above=0
  )
  held_out_share: float = _setting(
    'what',
    'The share of the clients that never take part in training, for'
    ' tasks.evaluate to test on.',
    default=0.0,
    at_least=0,
    below=1,
  )
  validation_share: float = _setting(
    'what',
    "The share of each client's training examples that are kept for validation:"
    ' all tests are on them. It is rounded to 1/2, 1/3, 1/4, …',
    default=0.0,
    at_least=0,
    at_most=0.5,
  )
  method: str = _setting(
    'method',
    'The method; fed_avg, fed_prox, fed_dyn and scaffold do not personalize.'
    ' By default pfl_dyn, or the one that --correction makes.',
    choices=methods.METHODS,
  )
  correction: str = _setting(
    'method',
    'In the place of --method, a correction of your own: a subclass of'
    ' tff_debias.Correction in a module that Python finds, such as'
    ' "--correction=my_module:MyCorrection(gamma=0.5)".',
  )
  personalization: str = _setting(
    'method',
    'How clients personalize; none for a method that does not. One of your own'
    ' is a subclass of tff_debias.Personalization, given as for --correction.',
  )
  tested_personalization: str = _setting(
    'method',
    'How clients personalize in tests, where the training does not personalize.'
    ' By default the tests do not either.',
  )
  alpha: float = _setting('method', 'The strength α of Dyn.', above=0)
  mu: float = _setting('method', 'The strength μ of FedProx.', above=0)
  maml_steps: int = _setting('method', 'The steps s of MAML.', at_least=1)
  maml_learning_rate: float = _setting(
    'method', 'The size a of a step of MAML.', above=0
  )
  maml_first_order: bool = _setting(
    'method', 'Whether MAML leaves out the second derivatives.'
  )
  clients_per_round: int = _setting(
    'training', 'The number of clients that take part in a round.', at_least=1
  )
  local_steps: int = _setting(
    'training',
    'The number K of local steps of a client in a round.',
    at_least=1,
  )
  batch_size: int = _setting(
    'training', 'The examples in a batch (support and query, each).', at_least=1
  )
  learning_rate: float = _setting(
    'training',
    'The learning rate β of the local steps in the first round.',
    above=0,
  )
  learning_rate_decay: float = _setting(
    'training', 'The factor on the learning rate from round to round.', above=0
  )
  weight_decay: float = _setting(
    'training', 'The weight decay of the local steps.', at_least=0
  )
  max_grad_norm: float = _setting(
    'training',
    'The bound on the norm of a gradient; inf for none. It is 10 for methods'
    ' that personalize, as published, and inf for the others, which'
    " --tested_personalization tests with that personalization's bound.",
    above=0,
  )
  seed: int = _setting(
    'training',
    'Decides the initial weights, the partition, the clients of each round and'
    ' their batches.',
    default=0,
    at_least=0,
    at_most=2**32 - 1,
  )
  jit_compile: bool = _setting(
    'training',
    'Whether XLA compiles all steps of a client together. It is for small dense'
    ' networks; a convolution on a CPU becomes slower.',
    default=False,
  )
  evaluated_model: str = _setting(
    'tests',
    "The model that is evaluated: selected (the mean of a round's clients) or"
    ' all (the mean over all clients; each sends a second model).',
    default='selected',
    choices=('selected', 'all'),
  )
  evaluation_clients: int = _setting(
    'tests',
    'The number of clients that are tested, always the same; 0 for all.',
    at_least=0,
  )
  rounds_per_evaluation: int = _setting(
    'tests', 'The number of rounds from one test to the next.', at_least=1
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check(field, getattr(self, field.name))
    if self.network is not None:
      components.parse('network', self.network)
    for name, value in self._complete_method().items():
      object.__setattr__(self, name, value)  # The class is frozen from here on.
    for name, (other, values) in methods.ONLY_WITH.items():
      if getattr(self, name) is not None and not self.has_effect(name):
        raise errors.UserError(
          f'--{name}={getattr(self, name)} has no effect with'
          f' --{other}={getattr(self, other)}, only with'
          f' --{other}={" or ".join(values)}. Leave it out.'
        )

  def _complete_method(self) -> dict[str, str | None]:
    """The method and its parts, made of those of them that are given."""
    parts = {
      name: components.normalized(name, getattr(self, name))
      for name in methods.PARTS
    }
    method = self.method
    if method is None and parts['correction'] is None:
      method = 'pfl_dyn'
    row = methods.METHODS.get(method or '')
    if row is not None:
      parts['correction'] = parts['correction'] or row.correction
    if parts['personalization'] is None:
      parts['personalization'] = 'none'
      if row is None or row.personalizes:
        defaults = catalog.defaults(self.task)
        parts['personalization'] = defaults['personalization']
    found = methods.find(parts['correction'], parts['personalization'])
    if method not in (None, found):
      raise errors.UserError(
        f'--method={method} does not go with --correction={parts["correction"]}'
        f' --personalization={parts["personalization"]}, which is'
        f' {found or "none of the methods"}. For tests alone there is'
        ' --tested_personalization.'
      )
    if self.tested_personalization and parts['personalization'] != 'none':
      raise errors.UserError(
        f'--tested_personalization={self.tested_personalization} is for methods'
        ' that train without personalization, but here'
        f' --personalization={parts["personalization"]}.'
      )
    return {'method': found, **parts}

  def has_effect(self, name: str) -> bool:
    """Whether a setting has an effect, as far as that is known already."""
    if name not in methods.ONLY_WITH:
      return True
    other, values = methods.ONLY_WITH[name]
    if other == 'personalization':
      return self.personalization_in_tests in values
    return getattr(self, other) in (None, *values)

  def defaults(self) -> dict[str, Any]:
    """The task's defaults; those of MAML's steps are for the tests, too."""
    training, tests = (
      catalog.defaults(self.task, self.correction, name, self.data_dir)
      for name in (self.personalization, self.personalization_in_tests)
    )
    maml = {k: v for k, v in tests.items() if k.startswith('maml_')}
    return training | maml

  def resolve(self) -> 'Settings':
    """Puts the task's defaults for what is `None` and has an effect."""
    defaults = self.defaults()
    partition = self.partition or defaults['partition']
    known = dataclasses.replace(self, partition=partition)
    missing = {
      name: defaults[name]
      for name, value in vars(known).items()
      if value is None and name in defaults and known.has_effect(name)
    }
    resolved = dataclasses.replace(known, **missing)
    resolved._check_sizes(defaults)  # noqa: SLF001
    return resolved

  def _check_sizes(self, defaults: Mapping[str, Any]) -> None:
    """Raises a `UserError` if clients or classes are more than there are."""
    is_natural = defaults['partition'] == 'natural'
    if (self.partition == 'natural') != is_natural:
      right = 'natural' if is_natural else 'acid, alid or dirichlet'
      raise errors.UserError(
        f'--partition={self.partition} does not go with --task={self.task}:'
        f' take --partition={right}.'
      )
    if is_natural and self.num_clients > defaults['num_clients']:
      raise errors.UserError(
        f'--num_clients={self.num_clients} must be at most'
        f' {defaults["num_clients"]}, the number of users in {self.task}.'
      )
    classes = catalog.TASKS[self.task].classes
    if classes and (self.classes_per_client or 0) > classes:
      raise errors.UserError(
        f'--classes_per_client={self.classes_per_client} must be at most'
        f' {classes}, the number of classes in {self.task}.'
      )
    if self.clients_per_round > self.num_clients - self.num_held_out:
      raise errors.UserError(
        f'--clients_per_round={self.clients_per_round} must be at most'
        f' --num_clients={self.num_clients} less the {self.num_held_out} of'
        ' --held_out_share.'
      )

  def changes(self) -> dict[str, Any]:
    """What differs from the defaults in resolved settings, for a run's name.

    The settings `MAIN`, `seed` and `data_dir` are left out.
    """
    given = {name: getattr(self, name) for name in (*MAIN, 'data_dir')}
    defaults = vars(Settings(**given).resolve())
    return {
      name: value
      for name, value in vars(self).items()
      if name not in (*MAIN, 'seed', 'data_dir') and value != defaults[name]
    }

  def uncorrected(self) -> 'Settings':
    """The same settings for the method without a correction."""
    owners = methods.ONLY_WITH.items()
    changes: dict[str, Any] = {
      name: None for name, (kind, _) in owners if kind == 'correction'
    }
    changes['method'] = methods.find('none', self.personalization)
    return dataclasses.replace(self, correction='none', **changes)

  def to_flags(self) -> list[str]:
    """The flags that give these settings; a method implies its correction."""
    implied = 'method' if self.method is None else 'correction'
    return [
      f'--{name}={value}'
      for name, value in vars(self).items()
      if value is not None and name != implied
    ]

  @property
  def personalization_in_tests(self) -> str:
    """The personalization of the tests, by default that of training."""
    return self.tested_personalization or self.personalization or 'none'

  @property
  def method_names(self) -> tuple[str, str]:
    """The method and the tests' personalization, for people: no modules."""
    names = (self.method or self.correction, self.personalization_in_tests)
    method, tests = (name.partition(':')[2] or name for name in names)
    return method, tests

  @property
  def num_held_out(self) -> int:
    """The number of clients of resolved settings that never train."""
    if not self.held_out_share:
      return 0
    return max(1, round(self.held_out_share * self.num_clients))

  @property
  def title(self) -> str:
    """The method and the data of resolved settings, for people."""
    method, personalization = map(methods.title, self.method_names)
    tested = 'tested with ' if self.tested_personalization else ''
    return f'{method}, {tested}{personalization} on {self.data_title}'

  @property
  def data_title(self) -> str:
    """The task of resolved settings and how it is split, for people."""
    split = {
      'dirichlet': f'Dirichlet({self.concentration})',
      'natural': 'its own users',
    }.get(
      self.partition,
      f'{self.partition.upper()}, {self.classes_per_client} classes a device',
    )
    training = self.num_clients - self.num_held_out
    parts = [split, f'{self.clients_per_round} of {training} devices a round']
    if self.held_out_share:
      parts.append(f'{self.num_held_out} held out')
    if self.validation_share:
      parts.append('tested on validation examples')
    return f'{methods.title(self.task)}: {", ".join(parts)}'


def add_flags(parser: cli.Parser, without: Collection[str] = ()) -> None:
  """Adds a flag for every setting but those in `without`."""
  for field in dataclasses.fields(Settings):
    help_text = field.metadata['help']
    choices = field.metadata.get('choices') or methods.PARTS.get(field.name)
    if choices:
      help_text += f' One of {", ".join(choices)}.'
    if field.name in methods.ONLY_WITH:
      other, values = methods.ONLY_WITH[field.name]
      help_text += f' Only with --{other}={" or ".join(values)}.'
    if field.name not in without:
      kind = Settings.__annotations__[field.name]
      group = field.metadata['group']
      parser.add(group, field.name, help_text, field.default, kind)


def add_workers(parser: cli.Parser) -> None:
  """Adds the flag --workers of the programs that train."""
  parser.add(
    'training',
    'workers',
    "TFF's workers that simulate the clients, HOST:PORT,HOST:PORT; by default"
    ' this process does. All of them must see the folder of the run.',
    [],
    list,
  )


def given(args: argparse.Namespace) -> dict[str, Any]:
  """The values of the flags that give settings, by name."""
  names = {field.name for field in dataclasses.fields(Settings)}
  return {name: value for name, value in vars(args).items() if name in names}


def help_defaults(args: argparse.Namespace) -> dict[str, Any]:
  """The values that `--help` shows for settings that no flag gives."""
  settings = Settings(**given(args))
  return settings.defaults() | vars(settings.resolve())


def parse(name: str, text: str) -> Any:
  """The value, of the setting's type, of a setting given as text."""
  try:
    return cli.convert(Settings.__annotations__[name], text)
  except argparse.ArgumentTypeError as e:
    raise errors.UserError(f'--{name}={e}') from e


def _check(field: dataclasses.Field, value: Any) -> None:
  choices = field.metadata.get('choices')
  if choices and value is not None and value not in choices:
    raise errors.UserError(
      f'--{field.name}={value} is not one of {", ".join(choices)}.'
      + errors.did_you_mean(value, choices)
    )
  for bound, is_right in _BOUNDS.items():
    limit = field.metadata.get(bound)
    if None not in (value, limit) and not is_right(value, limit):
      raise errors.UserError(
        f'--{field.name}={value} must be {bound.replace("_", " ")} {limit}.'
      )
