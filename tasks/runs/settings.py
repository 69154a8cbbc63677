"""Defines the settings of an experiment and the flags that give them.

Nothing here imports TensorFlow: `--help` and wrong flags are answered at once.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import operator
from typing import Any

from absl import flags

from tasks import catalog
from tasks.runs import components
from tasks.runs import errors
from tasks.runs import methods

# The flags defined here are those of the program that asks for them.
flags.disclaim_key_flags()

_BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
  'above': operator.gt,
  'at_least': operator.ge,
  'below': operator.lt,
  'at_most': operator.le,
}


def _setting(help_text: str, default: Any = None, **metadata: Any) -> Any:
  """A field with its help text, and its `choices` or its `_BOUNDS`."""
  metadata['help'] = help_text
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The values of all settings that the numbers of an experiment depend on.

  Any may be `None`: it is not given, or has no effect with the others.
  `resolve` puts the task's defaults. A value that is wrong or has no effect is
  a `UserError`.
  """

  task: str = _setting('The data and network.', 'digits', choices=catalog.TASKS)
  method: str = _setting(
    'The method; fed_avg, fed_prox, fed_dyn and scaffold do not personalize.'
    ' By default pfl_dyn, or the one that --correction makes.',
    choices=methods.METHODS,
  )
  correction: str = _setting(
    'In the place of --method, a correction of your own: a subclass of'
    ' tff_debias.Correction in a module that Python finds, such as'
    ' "--correction=my_module:MyCorrection(gamma=0.5)".'
  )
  personalization: str = _setting(
    'How clients personalize. By default proto, or none for a method that does'
    ' not personalize. One of your own is a subclass of'
    ' tff_debias.Personalization, given as for --correction.'
  )
  tested_personalization: str = _setting(
    'How clients personalize in tests, where the training does not personalize.'
    ' By default the tests do not either.'
  )
  partition: str = _setting(
    'How the data are split: acid (true labels), alid (each client relabels its'
    " classes), dirichlet, or natural (the data set's users). By default"
    ' natural where there are users, else acid.',
    choices=('acid', 'alid', 'dirichlet', 'natural'),
  )
  num_clients: int = _setting('The number m of clients.', at_least=1)
  classes_per_client: int = _setting(
    'The number of classes that a client holds.', at_least=1
  )
  concentration: float = _setting(
    'The parameter of the Dirichlet distribution.', above=0
  )
  held_out_share: float = _setting(
    'The share of the clients that never take part in training, for'
    ' tasks.evaluate to test on.',
    default=0.0,
    at_least=0,
    below=1,
  )
  validation_share: float = _setting(
    "The share of each client's training examples that are kept for validation:"
    ' all tests are on them. It is rounded to 1/2, 1/3, 1/4, …',
    default=0.0,
    at_least=0,
    at_most=0.5,
  )
  clients_per_round: int = _setting(
    'The number of clients that take part in a round.', at_least=1
  )
  local_steps: int = _setting(
    'The number K of local steps of a client in a round.', at_least=1
  )
  batch_size: int = _setting(
    'The examples in a batch (support and query, each).', at_least=1
  )
  learning_rate: float = _setting(
    'The learning rate β of the local steps in the first round.', above=0
  )
  learning_rate_decay: float = _setting(
    'The factor on the learning rate from round to round.', above=0
  )
  weight_decay: float = _setting(
    'The weight decay of the local steps.', at_least=0
  )
  max_grad_norm: float = _setting(
    'The bound on the norm of a gradient; inf for none. By default 10 for'
    ' methods that personalize, as published, and none for the others, which'
    " --tested_personalization tests with that personalization's default.",
    above=0,
  )
  alpha: float = _setting(
    'The strength α of Dyn; its default depends on the personalization.',
    above=0,
  )
  mu: float = _setting('The strength μ of FedProx.', above=0)
  maml_steps: int = _setting('The steps s of MAML.', at_least=1)
  maml_learning_rate: float = _setting('The size a of a step of MAML.', above=0)
  maml_first_order: bool = _setting(
    'Whether MAML leaves out the second derivatives. By default it does not.'
  )
  evaluated_model: str = _setting(
    "The model that is evaluated: selected (the mean of a round's clients) or"
    ' all (the mean over all clients; each sends a second model).',
    default='selected',
    choices=('selected', 'all'),
  )
  evaluation_clients: int = _setting(
    'The number of clients that are tested, always the same; 0 for all. By'
    ' default the task decides.',
    at_least=0,
  )
  rounds_per_evaluation: int = _setting(
    'The number of rounds from one evaluation to the next.', at_least=1
  )
  jit_compile: bool = _setting(
    'Whether XLA compiles all steps of a client together. It is for small dense'
    ' networks; a convolution on a CPU becomes slower.',
    default=False,
  )
  data_dir: str = _setting('The folder of the data of the task.')
  seed: int = _setting(
    'Decides the initial weights, the partition, the clients of each round and'
    ' their batches.',
    default=0,
    at_least=0,
    at_most=2**32 - 1,
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check(field, getattr(self, field.name))
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
      trains_plainly = row is not None and not row.personalizes
      parts['personalization'] = 'none' if trains_plainly else 'proto'
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

  def resolve(self, defaults: Mapping[str, Any]) -> 'Settings':
    """Puts `defaults` for the settings that are `None` and have an effect."""
    partition = self.partition or defaults['partition']
    known = dataclasses.replace(self, partition=partition)
    missing = {
      name: defaults[name]
      for name, value in vars(known).items()
      if value is None and name in defaults and known.has_effect(name)
    }
    return dataclasses.replace(known, **missing)

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


def define_workers() -> flags.FlagHolder[list[str]]:
  """Defines the flag --workers of the programs that train."""
  return flags.DEFINE_list(
    'workers',
    [],
    "TFF's workers that simulate the clients, HOST:PORT,HOST:PORT; by default"
    ' this process does. All of them must see the folder of the run.',
  )


def define_flags(without: Collection[str] = ()) -> None:
  """Defines a flag for every setting but those in `without`."""
  define = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
    str: flags.DEFINE_string,
  }
  for field in dataclasses.fields(Settings):
    help_text = field.metadata['help']
    choices = field.metadata.get('choices') or methods.PARTS.get(field.name)
    if choices:
      help_text = f'<{"|".join(choices)}>: {help_text}'
    if field.name in methods.ONLY_WITH:
      other, values = methods.ONLY_WITH[field.name]
      help_text += f' Only with --{other}={" or ".join(values)}.'
    if field.name not in without:
      kind = Settings.__annotations__[field.name]
      define[kind](field.name, field.default, help_text)


def given_by_flags() -> dict[str, Any]:
  """The values of the flags that give settings, by name."""
  return {
    field.name: flags.FLAGS[field.name].value
    for field in dataclasses.fields(Settings)
    if field.name in flags.FLAGS
  }


def from_flags() -> Settings:
  """The settings that the parsed flags give."""
  return Settings(**given_by_flags())


def parse(name: str, text: str) -> Any:
  """The value, of the setting's type, of a setting given as text."""
  kind = Settings.__annotations__[name]
  try:
    if kind is bool:
      return {'true': True, 'false': False}[text.lower()]
    return kind(text)
  except (ValueError, KeyError) as e:
    raise errors.UserError(
      f'--{name}={text} must be of {kind.__name__}.'
    ) from e


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
