"""Defines the settings of an experiment and the flags that give them.

Nothing here imports TensorFlow: `--help` and wrong flags are answered at once.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from tasks import catalog
from tasks import cli
from tasks.runs import components
from tasks.runs import errors
from tasks.runs import methods

_FLAGS = f"""
what:
  --task=NAME  The data and network. One of {', '.join(catalog.TASKS)}.
  --data_dir=NAME  The folder of the data; «python -m tasks» says which task has
    one.
  --network=NAME  In the place of the network of the task, one of your own:
    MODULE:FUNCTION. The function takes the number of outputs and gives a Keras
    model.
  --partition=NAME  How the data are split: acid (true labels), alid (each
    client relabels its classes), dirichlet, or natural (the data set's users).
    One of acid, alid, dirichlet, natural.
  --num_clients=N  The number m of clients, at least 1.
  --classes_per_client=N  The number of classes that a client holds, at least 1.
  --concentration=X  The parameter of the Dirichlet distribution, above 0.
  --held_out_share=X  The share of the clients that never take part in training,
    for tasks.evaluate to test on: at least 0, below 1.
  --validation_share=X  The share of each client's training examples that are
    kept for validation, at least 0 and at most 0.5. All tests are on them. It
    is rounded to 1/2, 1/3, 1/4, …

method:
  --method=NAME  The method; fed_avg, fed_prox, fed_dyn and scaffold do not
    personalize. By default pfl_dyn, or the one that --correction makes. One of
    {', '.join(methods.METHODS)}.
  --correction=NAME  In the place of --method, one of
    {', '.join(methods.CORRECTIONS)}; or a correction of your own: a subclass of
    tff_debias.Correction in a module that Python finds, such as
    "--correction=my_module:MyCorrection(gamma=0.5)".
  --personalization=NAME  How clients personalize: one of
    {', '.join(methods.PERSONALIZATIONS)}; none for a method that does not. One
    of your own is a subclass of tff_debias.Personalization, given as for
    --correction.
  --tested_personalization=NAME  How clients personalize in tests, where the
    training does not personalize. By default the tests do not either.
  --alpha=X  The strength α of Dyn, above 0.
  --mu=X  The strength μ of FedProx, above 0.
  --maml_steps=N  The steps s of MAML, at least 1.
  --maml_learning_rate=X  The size a of a step of MAML, above 0.
  --[no]maml_first_order  Whether MAML leaves out the second derivatives.

training:
  --clients_per_round=N  The number of clients that take part in a round, at
    least 1.
  --local_steps=N  The number K of local steps of a client in a round, at least
    1.
  --batch_size=N  The examples in a batch (support and query, each), at least 1.
  --learning_rate=X  The learning rate β of the local steps in the first round,
    above 0.
  --learning_rate_decay=X  The factor on the learning rate from round to round,
    above 0.
  --weight_decay=X  The weight decay of the local steps, at least 0.
  --max_grad_norm=X  The bound on the norm of a gradient, above 0; inf for none.
    It is 10 for methods that personalize, as published, and inf for the others,
    which --tested_personalization tests with that personalization's bound.
  --seed=N  Decides the initial weights, the partition, the clients of each
    round and their batches; at least 0, at most {2**32 - 1}.
  --[no]jit_compile  Whether XLA compiles all steps of a client together. It is
    for small dense networks; a convolution on a CPU becomes slower.

tests:
  --evaluated_model=NAME  The model that is evaluated: selected (the mean of a
    round's clients) or all (the mean over all clients; each sends a second
    model). One of selected, all.
  --evaluation_clients=N  The number of clients that are tested, always the
    same, at least 0; 0 for all.
  --rounds_per_evaluation=N  The number of rounds from one test to the next, at
    least 1.
"""


def _goes_with(flag: cli.Flag) -> cli.Flag:
  """The flag whose meaning says with which others it has an effect."""
  if flag.name not in methods.ONLY_WITH:
    return flag
  other, values = methods.ONLY_WITH[flag.name]
  also = f' Only with --{other}={" or ".join(values)}.'
  return dataclasses.replace(flag, meaning=flag.meaning + also)


#: The flag of each setting, by name.
FLAGS = {flag.name: _goes_with(flag) for flag in cli.read_flags(_FLAGS)}
# Not given: typed as it is where all settings are resolved.
_OPEN: Any = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """The values of all settings that the numbers of an experiment depend on.

  Their flags say what they are. Any may be `None`: it is not given, or has no
  effect with the others. `resolve` puts the task's defaults. A value that is
  wrong or has no effect is a `UserError`.
  """

  task: str = 'digits'
  data_dir: str = _OPEN
  network: str = _OPEN
  partition: str = _OPEN
  num_clients: int = _OPEN
  classes_per_client: int = _OPEN
  concentration: float = _OPEN
  held_out_share: float = 0.0
  validation_share: float = 0.0
  method: str = _OPEN
  correction: str = _OPEN
  personalization: str = _OPEN
  tested_personalization: str = _OPEN
  alpha: float = _OPEN
  mu: float = _OPEN
  maml_steps: int = _OPEN
  maml_learning_rate: float = _OPEN
  maml_first_order: bool = _OPEN
  clients_per_round: int = _OPEN
  local_steps: int = _OPEN
  batch_size: int = _OPEN
  learning_rate: float = _OPEN
  learning_rate_decay: float = _OPEN
  weight_decay: float = _OPEN
  max_grad_norm: float = _OPEN
  seed: int = 0
  jit_compile: bool = False
  evaluated_model: str = 'selected'
  evaluation_clients: int = _OPEN
  rounds_per_evaluation: int = _OPEN

  def __post_init__(self):
    for name, value in vars(self).items():
      if value is not None:
        FLAGS[name].check(value)
    if self.network is not None:
      components.parse('network', self.network)
    for name, text in self._complete_method().items():
      object.__setattr__(self, name, text)  # The class is frozen from here on.
    for name in methods.ONLY_WITH:
      if getattr(self, name) is not None and not self.has_effect(name):
        other, values = methods.ONLY_WITH[name]
        raise errors.UserError(
          f'--{name}={getattr(self, name)} has no effect with'
          f' --{other}={getattr(self, other)}, only with'
          f' --{other}={" or ".join(values)}. Leave it out.'
        )

  def _complete_method(self) -> dict[str, str | None]:
    """The method and its parts, made of those of them that are given."""
    method = self.method
    row = methods.METHODS[method or 'pfl_dyn']
    parts = {
      name: components.normalized(name, getattr(self, name))
      for name in methods.PARTS
    }
    parts['correction'] = parts['correction'] or row.correction
    if parts['personalization'] is None:
      default = catalog.defaults(self.task)['personalization']
      parts['personalization'] = default if row.personalizes else 'none'
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
    other, values = methods.ONLY_WITH.get(name, ('', ()))
    if other == 'personalization':
      return self.personalization_in_tests in values
    return not other or getattr(self, other) in (None, *values)

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
      name: value
      for name, value in defaults.items()
      if getattr(known, name, '') is None and known.has_effect(name)
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
    users = defaults['num_clients'] if is_natural else None
    classes = catalog.TASKS[self.task].classes
    for name, most, what in (
      ('num_clients', users, f'the number of users in {self.task}'),
      ('classes_per_client', classes, f'the number of classes in {self.task}'),
      (
        'clients_per_round',
        self.num_clients - self.num_held_out,
        '--num_clients less those of --held_out_share',
      ),
    ):
      value = getattr(self, name)
      if None not in (value, most) and value > most:
        raise errors.UserError(
          f'--{name}={value} must be at most {most}, {what}.'
        )

  def changes(self) -> dict[str, Any]:
    """What differs from the defaults in resolved settings, for a run's name.

    The seed is left out, and what decides the defaults.
    """
    main = ('task', 'data_dir', 'partition', 'method', *methods.PARTS)
    defaults = vars(Settings(**{k: getattr(self, k) for k in main}).resolve())
    return {
      name: value
      for name, value in vars(self).items()
      if name not in (*main, 'seed') and value != defaults[name]
    }

  def uncorrected(self) -> 'Settings':
    """The same settings for the method without a correction."""
    return with_effect({**vars(self), 'method': None, 'correction': 'none'})

  def tuned(self, path: str | None) -> 'Settings':
    """Puts what a file of `tasks.tune` has chosen for what is `None`."""
    if path is None:
      return self
    try:
      with open(path) as file:
        content = json.load(file)
      chosen: dict[str, dict[str, Any]] = content.pop('chosen')
      values = {**content, **chosen.get(self.key, {})}
      changes = {k: v for k, v in values.items() if getattr(self, k) is None}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
      raise errors.UserError(
        f'--tuned={path} must be a file tuned.json of tasks.tune: {e}.'
      ) from e
    for name, value in content.items():
      if getattr(self, name) not in (None, value):
        raise errors.UserError(
          f'--tuned={path} is for --{name}={value}, not {getattr(self, name)}.'
        )
    if self.key not in chosen:
      raise errors.UserError(
        f'--tuned={path} has no {self.key}, only {", ".join(chosen)}.'
      )
    return dataclasses.replace(self, **changes)

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
  def key(self) -> str:
    """The method and the tests' personalization, as `pfl_dyn/maml`."""
    return '/'.join(self.method_names)

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


def with_effect(values: Mapping[str, Any]) -> Settings:
  """The settings of values, without those that have no effect with others."""
  of_all = values.keys() - methods.ONLY_WITH.keys()
  known = Settings(**{name: values[name] for name in of_all})
  return Settings(**{k: v for k, v in values.items() if known.has_effect(k)})


def given(args: cli.Args) -> dict[str, Any]:
  """The values of the flags that give settings, by name."""
  return {
    name: value
    for name, value in vars(args).items()
    if name in FLAGS and value is not None
  }


def help_defaults(args: cli.Args) -> dict[str, Any]:
  """The values that `--help` shows for settings that no flag gives."""
  settings = Settings(**given(args))
  return settings.defaults() | vars(settings.resolve())
