"""Defines the settings of an experiment and the flags that give them.

Nothing here imports TensorFlow: `--help` and wrong flags are answered at once.
"""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import math
import operator
import types
import typing
from typing import Any

from absl import flags

from tasks import catalog
from tasks.runs import components
from tasks.runs import errors
from tasks.runs import names as names_lib

# The flags defined here are those of the program that asks for them.
flags.disclaim_key_flags()

#: The published methods: their correction, and whether they personalize.
METHODS = types.MappingProxyType(
  {
    'fed_avg': ('none', False),
    'per_fed_avg': ('none', True),
    'fed_prox': ('prox', False),
    'fed_dyn': ('dyn', False),
    'pfl_dyn': ('dyn', True),
    'scaffold': ('scaf', False),
    'pfl_scaf': ('scaf', True),
  }
)
_DEFAULT_METHOD = 'pfl_dyn'

_BOUNDS = (
  ('above', operator.gt),
  ('at_least', operator.ge),
  ('below', operator.lt),
  ('at_most', operator.le),
)
# Their order is drawn at once, in memory. The published experiment has 5,000.
_MAX_EXAMPLES_IN_A_ROUND = 10**7


def _setting(help_text: str, default: Any = None, **metadata: Any) -> Any:
  """A field with its default, its help text, and what is checked.

  `choices` are the values allowed; `above`, `at_least`, `below`, `at_most` are
  bounds; `may_be_infinite` allows infinity; `only_with` is another setting and
  the values of it with which this one has an effect.
  """
  return dataclasses.field(
    default=default, metadata={'help': help_text, **metadata}
  )


@dataclasses.dataclass(frozen=True)
class Settings:
  """All settings that the numbers of an experiment depend on.

  A setting that is `None` is not given. Where it has an effect, `resolve` puts
  the task's default in its place. A setting without effect stays `None`, and to
  give one is an error.
  """

  task: str = _setting(
    'The data and the network.', 'digits', choices=catalog.TASKS
  )
  method: str | None = _setting(
    'The published method; fed_avg, fed_prox, fed_dyn and scaffold do not'
    f' personalize. By default {_DEFAULT_METHOD}, or the one that --correction'
    ' makes.',
    choices=tuple(METHODS),
  )
  correction: str | None = _setting(
    'The correction. A method has one; --correction is for one of your own, and'
    ' takes the place of --method: a subclass of tff_debias.Correction in a'
    ' module that Python finds, such as'
    ' "--correction=my_module:MyCorrection(gamma=0.5)".',
  )
  personalization: str | None = _setting(
    'How clients personalize. By default proto, or none for a method that does'
    ' not personalize. One of your own is a subclass of'
    ' tff_debias.Personalization, given as for --correction.',
  )
  tested_personalization: str | None = _setting(
    'How clients personalize in tests, where the training does not personalize.'
    ' By default the tests do not either.',
  )
  partition: str | None = _setting(
    'How the data are split: acid (true labels), alid (each client relabels'
    " its classes), dirichlet, or natural (the data set's own users). By"
    ' default natural where the data set has users, else acid.',
    choices=('acid', 'alid', 'dirichlet', 'natural'),
  )
  num_clients: int | None = _setting('The number m of clients.', at_least=1)
  classes_per_client: int | None = _setting(
    'The number of classes that a client holds.',
    at_least=1,
    only_with=('partition', ('acid', 'alid')),
  )
  concentration: float | None = _setting(
    'The parameter of the Dirichlet distribution.',
    at_least=1e-6,
    at_most=10**6,
    only_with=('partition', ('dirichlet',)),
  )
  held_out_share: float = _setting(
    'The share of the clients that never take part in training, for'
    ' tasks.evaluate to test on.',
    0.0,
    at_least=0,
    below=1,
  )
  validation_share: float = _setting(
    "The share of each client's training examples that are kept for validation:"
    ' all tests are then on them, and not on the test examples. It is rounded'
    ' to 1/2, 1/3, 1/4, …',
    0.0,
    at_least=0,
    at_most=0.5,
  )
  clients_per_round: int | None = _setting(
    'The number of clients that take part in a round.', at_least=1
  )
  local_steps: int | None = _setting(
    'The number K of local steps of a client in a round.',
    at_least=1,
    at_most=10**6,
  )
  batch_size: int | None = _setting(
    'The examples in a batch (support and query, each).',
    at_least=1,
    at_most=10**6,
  )
  learning_rate: float | None = _setting(
    'The learning rate β of the local steps in the first round.', above=0
  )
  learning_rate_decay: float | None = _setting(
    'The factor on the learning rate from round to round.', above=0
  )
  weight_decay: float | None = _setting(
    'The weight decay of the local steps.', at_least=0
  )
  max_grad_norm: float | None = _setting(
    'The bound on the norm of a gradient; inf for none. By default 10 for'
    ' methods that personalize, as published, and none for the others. A method'
    ' without a bound that is tested with --tested_personalization takes that'
    " personalization's default bound in its tests.",
    above=0,
    may_be_infinite=True,
  )
  alpha: float | None = _setting(
    'The strength α of Dyn; its default depends on the personalization.',
    above=0,
    only_with=('correction', ('dyn',)),
  )
  mu: float | None = _setting(
    'The strength μ of FedProx.',
    above=0,
    only_with=('correction', ('prox',)),
  )
  maml_steps: int | None = _setting(
    'The number s of steps of MAML.',
    at_least=1,
    at_most=1000,
    only_with=('personalization', ('maml',)),
  )
  maml_learning_rate: float | None = _setting(
    'The size a of a step of MAML.',
    above=0,
    only_with=('personalization', ('maml',)),
  )
  maml_first_order: bool | None = _setting(
    'Whether MAML leaves out the second derivatives. By default it does not.',
    only_with=('personalization', ('maml',)),
  )
  evaluated_model: str = _setting(
    "The model that is evaluated: selected (the mean of a round's clients) or"
    ' all (the mean over all clients; each sends a second model).',
    'selected',
    choices=('selected', 'all'),
  )
  evaluation_clients: int | None = _setting(
    'The number of clients that are tested at each evaluation, the same each'
    ' time. By default the task decides; 0 for all.',
    at_least=0,
  )
  rounds_per_evaluation: int | None = _setting(
    'The number of rounds from one evaluation to the next.', at_least=1
  )
  data_dir: str | None = _setting(
    'The folder that holds the data of the task, where it needs one.'
  )
  seed: int = _setting(
    'Decides the initial weights, the partition, the clients of each round and'
    ' their batches.',
    0,
    at_least=0,
    at_most=2**32 - 1,
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check(field, getattr(self, field.name))
    for name in components.BUILT_IN:
      value = getattr(self, name)
      if value is not None and value not in components.BUILT_IN[name]:
        self._set(name, str(components.parse(name, value)))
    self._check_size_of_round()
    self._complete_method()
    if self.tested_personalization and self.personalization != 'none':
      raise errors.UserError(
        f'--tested_personalization={self.tested_personalization} is for methods'
        ' that train without personalization, as fed_avg, but here'
        f' --personalization={self.personalization}.'
      )
    for field in dataclasses.fields(self):
      if getattr(self, field.name) is not None and not self.has_effect(
        field.name
      ):
        other, values = field.metadata['only_with']
        found = f'--{other}={getattr(self, other)}'
        if other == 'correction' and self.method is not None:
          found = f'--method={self.method}'
        raise errors.UserError(
          f'--{field.name}={getattr(self, field.name)} has no effect with'
          f' {found}, only with --{other}={" or ".join(values)}. Leave it out.'
        )

  def _check_size_of_round(self) -> None:
    if self.local_steps and self.batch_size:
      examples = self.local_steps * self.batch_size
      if examples > _MAX_EXAMPLES_IN_A_ROUND:
        raise errors.UserError(
          f'--local_steps={self.local_steps} times'
          f' --batch_size={self.batch_size} must be at most'
          f' {_MAX_EXAMPLES_IN_A_ROUND}, the examples of a client in a round.'
        )

  def _set(self, name: str, value: Any) -> None:
    # The class is frozen; this is for the time before the object is used.
    object.__setattr__(self, name, value)

  def _complete_method(self) -> None:
    """Makes method, correction and personalization of those that are given."""
    if self.method is None and self.correction is None:
      self._set('method', _DEFAULT_METHOD)
    if self.method is None:
      self._set('personalization', self.personalization or 'proto')
      pair = (self.correction, self.personalization != 'none')
      names = [name for name, parts in METHODS.items() if parts == pair]
      self._set('method', names[0] if names else None)
      return
    correction, personalizes = METHODS[self.method]
    if self.correction not in (None, correction):
      raise errors.UserError(
        f'--method={self.method} and --correction={self.correction} do not go'
        f' together: the correction of {self.method} is {correction}. Leave out'
        ' one of the two.'
      )
    self._set('correction', correction)
    default = 'proto' if personalizes else 'none'
    self._set('personalization', self.personalization or default)
    if personalizes != (self.personalization != 'none'):
      pair = (correction, not personalizes)
      right = [f'--method={n}' for n, parts in METHODS.items() if parts == pair]
      if personalizes:
        right.append('--personalization=maml or proto')
      else:
        right.append('--personalization=none')
        right.append(f'--tested_personalization={self.personalization}')
      raise errors.UserError(
        f'--method={self.method} and --personalization={self.personalization}'
        f' do not go together: take {", or ".join(right)}.'
      )

  def has_effect(self, name: str) -> bool:
    """Whether a setting has an effect, as far as that is known already."""
    fields = {field.name: field for field in dataclasses.fields(self)}
    other, values = fields[name].metadata.get('only_with', (None, ()))
    if other == 'personalization':
      return self.personalization_in_tests in (None, *values)
    return other is None or getattr(self, other) in (None, *values)

  def uncorrected(self) -> 'Settings':
    """The same settings for the method without a correction."""
    pair = ('none', self.personalization != 'none')
    (method,) = (name for name, parts in METHODS.items() if parts == pair)
    of_corrections = {
      field.name: None
      for field in dataclasses.fields(self)
      if field.metadata.get('only_with', ('',))[0] == 'correction'
    }
    return dataclasses.replace(
      self, method=method, correction='none', **of_corrections
    )

  @property
  def personalization_in_tests(self) -> str | None:
    """The personalization of the tests, by default that of training."""
    return self.tested_personalization or self.personalization

  @property
  def method_names(self) -> tuple[str, str]:
    """The method and the tests' personalization, for people: no modules."""
    names = (self.method or self.correction, self.personalization_in_tests)
    return tuple(name.partition(':')[2] or name for name in names)

  @property
  def title(self) -> str:
    """The method and the data of resolved settings, for people."""
    method, personalization = map(names_lib.name, self.method_names)
    if self.tested_personalization is not None:
      personalization = f'tested with {personalization}'
    return f'{method}, {personalization} on {self.data_title}'

  @property
  def data_title(self) -> str:
    """The task of resolved settings and how it is split, for people."""
    split = {
      'acid': f'ACID, {self.classes_per_client} classes a device',
      'alid': f'ALID, {self.classes_per_client} classes a device',
      'dirichlet': f'Dirichlet({self.concentration})',
      'natural': 'its own users',
    }[self.partition]
    return (
      f'{names_lib.name(self.task)}: {split}, {self.clients_per_round} of'
      f' {self.num_clients - self.num_held_out} devices a round'
      + (f', {self.num_held_out} held out' * (self.held_out_share > 0))
      + ', tested on validation examples' * (self.validation_share > 0)
    )

  @property
  def num_held_out(self) -> int:
    """The number of clients of resolved settings that never train."""
    number = round(self.held_out_share * self.num_clients)
    return max(number, int(self.held_out_share > 0))

  def resolve(self, defaults: Mapping[str, Any]) -> 'Settings':
    """Puts `defaults` for the settings that are `None` and have an effect."""
    known = dataclasses.replace(
      self, partition=self.partition or defaults.get('partition')
    )
    return dataclasses.replace(
      known,
      **{
        field.name: defaults[field.name]
        for field in dataclasses.fields(known)
        if getattr(known, field.name) is None
        and field.name in defaults
        and known.has_effect(field.name)
      },
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
    if field.name in without:
      continue
    help_text = field.metadata['help']
    choices = field.metadata.get('choices', ())
    if field.name in components.BUILT_IN:
      choices = (*components.BUILT_IN[field.name], 'MODULE:CLASS(NAME=VALUE)')
    if choices:
      help_text = f'<{"|".join(choices)}>: {help_text}'
    if 'only_with' in field.metadata:
      other, values = field.metadata['only_with']
      help_text += f' Only with --{other}={" or ".join(values)}.'
    define[_type(field.name)](field.name, field.default, help_text)


def from_flags(only_with_effect: bool = False, **given: Any) -> Settings:
  """The settings that the parsed flags give, and those `given` without a flag.

  With `only_with_effect` a flag without effect is ignored, and not an error:
  for programs in which the same flags are for several methods.
  """
  values = _flag_values() | given
  if only_with_effect:
    fields = dataclasses.fields(Settings)
    decisive = {f.name for f in fields if 'only_with' not in f.metadata}
    known = Settings(**{k: v for k, v in values.items() if k in decisive})
    effective = {f.name for f in fields if known.has_effect(f.name)}
    values = {k: v for k, v in values.items() if k in effective}
  return Settings(**values)


def check_flags_have_effect(settings: Collection[Settings]) -> None:
  """Raises an error if a flag has no effect on any of the settings."""
  for name, value in _flag_values().items():
    if value is not None and not any(s.has_effect(name) for s in settings):
      raise errors.UserError(
        f'--{name}={value} has no effect on any of the methods. Leave it out.'
      )


def _flag_values() -> dict[str, Any]:
  """The values of the flags that give settings, by name."""
  return {
    field.name: flags.FLAGS[field.name].value
    for field in dataclasses.fields(Settings)
    if field.name in flags.FLAGS
  }


def parse(name: str, text: str) -> Any:
  """The value, of the setting's type, of a setting given as text."""
  names = [field.name for field in dataclasses.fields(Settings)]
  if name not in names:
    raise errors.UserError(
      f'There is no setting {name!r}.{errors.did_you_mean(name, names)}'
    )
  kind = _type(name)
  try:
    if kind is bool:
      return {'true': True, 'false': False}[text.lower()]
    return kind(text)
  except (ValueError, KeyError) as e:
    raise errors.UserError(
      f'--{name}={text} must be of {kind.__name__}.'
    ) from e


def _type(name: str) -> type:
  hint = typing.get_type_hints(Settings)[name]
  return (typing.get_args(hint) or [hint])[0]


def _check(field: dataclasses.Field, value: Any) -> None:
  if value is None:
    return
  choices = field.metadata.get('choices')
  if choices and value not in choices:
    raise errors.UserError(
      f'--{field.name}={value} is not one of {", ".join(choices)}.'
      + errors.did_you_mean(value, choices)
    )
  if isinstance(value, float) and not math.isfinite(value):
    if value != math.inf or 'may_be_infinite' not in field.metadata:
      raise errors.UserError(f'--{field.name}={value} must be a finite number.')
  for bound, is_right in _BOUNDS:
    limit = field.metadata.get(bound)
    if limit is not None and not is_right(value, limit):
      wording = bound.replace('_', ' ')
      raise errors.UserError(
        f'--{field.name}={value} must be {wording} {limit}.'
      )
