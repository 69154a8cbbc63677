"""The settings of an experiment, and the flags that give them.

Nothing here imports TensorFlow: `--help` and wrong flags are answered at once.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import math
import operator
import types
import typing
from typing import Any

from absl import flags

from tasks import catalog

#: The published methods: their correction, and whether they personalize.
METHODS = types.MappingProxyType(
  {
    'fed_avg': ('none', False),
    'per_fed_avg': ('none', True),
    'fed_dyn': ('dyn', False),
    'pfl_dyn': ('dyn', True),
    'scaffold': ('scaf', False),
    'pfl_scaf': ('scaf', True),
  }
)

_BOUNDS = types.MappingProxyType(
  {'above': operator.gt, 'at_least': operator.ge, 'below': operator.lt}
)


class SettingsError(ValueError):
  """A setting is wrong: which, its value, and what would be right."""


def _setting(
  default: Any,
  help_text: str,
  *,
  choices: Sequence[str] | None = None,
  above: float | None = None,
  at_least: float | None = None,
  below: float | None = None,
) -> Any:
  return dataclasses.field(
    default=default,
    metadata={
      'help': help_text,
      'choices': choices,
      'above': above,
      'at_least': at_least,
      'below': below,
    },
  )


@dataclasses.dataclass(frozen=True)
class Settings:
  """All that the numbers of an experiment depend on.

  A setting that is `None` is the task's default; `resolve` fills it in.
  """

  task: str = _setting(
    'digits', 'The data and the network.', choices=catalog.TASKS
  )
  method: str = _setting(
    'pfl_dyn',
    'The method; fed_avg, fed_dyn and scaffold do not personalize.',
    choices=tuple(METHODS),
  )
  personalization: str | None = _setting(
    None,
    'How devices personalize: none, maml or proto. By default proto, or none'
    ' for a method that does not personalize.',
    choices=('none', 'maml', 'proto'),
  )
  partition: str | None = _setting(
    None,
    'How the data are split: acid (true labels), alid (each device relabels'
    " its classes), dirichlet, or natural (the data set's own users). By"
    ' default natural where the data set has users, acid where it has none.',
    choices=('acid', 'alid', 'dirichlet', 'natural'),
  )
  num_clients: int | None = _setting(
    None, 'The number m of devices.', at_least=1
  )
  classes_per_client: int | None = _setting(
    None, 'The classes that a device holds (acid, alid).', at_least=1
  )
  concentration: float = _setting(
    0.3, 'The parameter of the Dirichlet distribution.', above=0
  )
  held_out_share: float = _setting(
    0.0,
    'The share of the devices that never take part in training, for'
    ' tasks.evaluate to test on.',
    at_least=0,
    below=1,
  )
  clients_per_round: int | None = _setting(
    None, 'The devices that take part in a round.', at_least=1
  )
  local_steps: int | None = _setting(
    None, 'The local steps K of a device in a round.', at_least=1
  )
  batch_size: int | None = _setting(
    None, 'The examples in a batch (support and query, each).', at_least=1
  )
  learning_rate: float | None = _setting(
    None, 'The learning rate β of the local steps.', above=0
  )
  learning_rate_decay: float | None = _setting(
    None, 'The factor on the learning rate, each round.', above=0
  )
  weight_decay: float | None = _setting(
    None, 'The weight decay of the local steps.', at_least=0
  )
  max_grad_norm: float = _setting(
    10.0, 'The bound on the norm of a gradient.', above=0
  )
  alpha: float | None = _setting(
    None,
    'The strength α of Dyn; its default depends on the method.',
    above=0,
  )
  maml_steps: int | None = _setting(None, 'The steps s of MAML.', at_least=1)
  maml_learning_rate: float | None = _setting(
    None, 'The size a of a step of MAML.', above=0
  )
  maml_first_order: bool = _setting(
    False, 'Whether MAML leaves out the second derivatives.'
  )
  evaluated_model: str = _setting(
    'selected',
    'The model that is evaluated: selected (the mean over the participants of'
    ' a round) or all (over all devices; one more model up).',
    choices=('selected', 'all'),
  )
  evaluation_clients: int | None = _setting(
    None,
    'The devices that are tested at each evaluation, the same each time. By'
    ' default the task decides; 0 for all.',
    at_least=0,
  )
  rounds_per_evaluation: int | None = _setting(
    None, 'The rounds from one evaluation to the next.', at_least=1
  )
  data_dir: str | None = _setting(
    None, 'The folder that holds the data of the task, where it needs one.'
  )
  seed: int = _setting(
    0, 'Chooses the weights, partition, participants, batches.', at_least=0
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check(field, getattr(self, field.name))
    personalizes = METHODS[self.method][1]
    if self.personalization is None:
      default = 'proto' if personalizes else 'none'
      object.__setattr__(self, 'personalization', default)
    if personalizes != (self.personalization != 'none'):
      right = [
        name
        for name, (correction, other) in METHODS.items()
        if correction == self.correction and other != personalizes
      ]
      raise SettingsError(
        f'--method={self.method} and --personalization={self.personalization}'
        f' do not go together: take --method={right[0]}, or'
        f' --personalization={"maml or proto" if personalizes else "none"}.'
      )

  @property
  def correction(self) -> str:
    """The module of `tff_debias.corrections`."""
    return METHODS[self.method][0]

  def resolve(self, defaults: Mapping[str, Any]) -> 'Settings':
    """The settings with the task's defaults where they are `None`."""
    return dataclasses.replace(
      self,
      **{k: v for k, v in defaults.items() if getattr(self, k, v) is None},
    )


def define_flags(without: Collection[str] = ()) -> None:
  """Defines a flag for every setting.

  Args:
    without: The settings that get none.
  """
  define = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
    str: flags.DEFINE_string,
  }
  for field in dataclasses.fields(Settings):
    if field.name not in without:
      help_text = field.metadata['help']
      if field.metadata['choices']:
        help_text = f'<{"|".join(field.metadata["choices"])}>: {help_text}'
      define[_type(field.name)](field.name, field.default, help_text)


def from_flags(**given: Any) -> Settings:
  """The settings that the parsed flags give.

  Args:
    **given: Settings that have no flag.

  Returns:
    The settings.

  Raises:
    SettingsError: If a flag is wrong.
  """
  names = {field.name for field in dataclasses.fields(Settings)} - given.keys()
  return Settings(**given, **{n: flags.FLAGS[n].value for n in names})


def parse(name: str, text: str) -> Any:
  """The value of a setting that is given as text.

  Args:
    name: The setting.
    text: Its value, as a flag has it.

  Returns:
    The value, of the setting's type.

  Raises:
    SettingsError: If there is no such setting, or the text is no such value.
  """
  names = [field.name for field in dataclasses.fields(Settings)]
  if name not in names:
    raise SettingsError(f'There is no setting {name!r}.{_nearest(name, names)}')
  kind = _type(name)
  try:
    if kind is bool:
      return {'true': True, 'false': False}[text.lower()]
    return kind(text)
  except (ValueError, KeyError) as e:
    raise SettingsError(f'--{name}={text} must be of {kind.__name__}.') from e


def _type(name: str) -> type:
  hint = typing.get_type_hints(Settings)[name]
  return (typing.get_args(hint) or [hint])[0]


def _nearest(value: str, choices: Sequence[str]) -> str:
  nearest = difflib.get_close_matches(value, choices, 1, 0.5)
  return f' Did you mean {nearest[0]}?' if nearest else ''


def _check(field: dataclasses.Field, value: Any) -> None:
  choices = field.metadata['choices']
  if value is None:
    return
  if choices and value not in choices:
    raise SettingsError(
      f'--{field.name}={value} is not one of {", ".join(choices)}.'
      + _nearest(value, choices)
    )
  if isinstance(value, float) and not math.isfinite(value):
    raise SettingsError(f'--{field.name}={value} must be a finite number.')
  for bound, is_right in _BOUNDS.items():
    limit = field.metadata[bound]
    if limit is not None and not is_right(value, limit):
      wording = bound.replace('_', ' ')
      raise SettingsError(f'--{field.name}={value} must be {wording} {limit}.')
