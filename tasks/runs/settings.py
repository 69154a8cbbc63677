"""Defines the settings of an experiment and the flags that give them.

Nothing here imports TensorFlow: `--help` and wrong flags are answered at once.
"""

from collections.abc import Mapping
import dataclasses
import json
import types
from typing import Any

from tasks import catalog
from tasks import cli
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


class Settings(types.SimpleNamespace):
  """The values of all settings that the numbers of an experiment depend on.

  Their names are those of `FLAGS`, whose texts say what they are, but for the
  `method`, which its parts make. One without effect is `None`. See `resolve`.
  """

  @property
  def method(self) -> str | None:
    """The name of the method; `None` with a class of your own."""
    return methods.find(self.correction, self.personalization)

  @property
  def personalization_in_tests(self) -> str:
    """The personalization of the tests, by default that of training."""
    return self.tested_personalization or self.personalization

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
    """The number of clients that never train."""
    if not self.held_out_share:
      return 0
    return max(1, round(self.held_out_share * self.num_clients))

  @property
  def title(self) -> str:
    """The method and the data, for people."""
    method, personalization = map(methods.title, self.method_names)
    tested = 'tested with ' if self.tested_personalization else ''
    return f'{method}, {tested}{personalization} on {self.data_title}'

  @property
  def data_title(self) -> str:
    """The task and how it is split, for people."""
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

  def defaults(self) -> dict[str, Any]:
    """The task's defaults; those of MAML's steps are for the tests, too."""
    training, tests = (
      catalog.defaults(self.task, self.correction, name, self.data_dir)
      for name in (self.personalization, self.personalization_in_tests)
    )
    maml = {k: v for k, v in tests.items() if k.startswith('maml_')}
    return training | maml

  def changes(self) -> dict[str, Any]:
    """What differs from the defaults, for a run's name.

    The seed is left out, and what decides the defaults.
    """
    main = ('task', 'data_dir', 'partition', *methods.PARTS)
    defaults = vars(resolve(**{name: getattr(self, name) for name in main}))
    return {
      name: value
      for name, value in vars(self).items()
      if name not in (*main, 'seed') and value != defaults[name]
    }

  def uncorrected(self) -> 'Settings':
    """The same settings for the method without a correction."""
    return resolve(**with_effect({**vars(self), 'correction': 'none'}))

  def to_flags(self) -> list[str]:
    """The flags that give these settings."""
    given = {k: v for k, v in vars(self).items() if v is not None}
    return [f'--{name}={value}' for name, value in given.items()]


def resolve(**given: Any) -> Settings:
  """The settings that are given, and the task's defaults for the others.

  Raises:
    UserError: If a value is wrong, has no effect, or does not go with others.
  """
  given = {name: value for name, value in given.items() if value is not None}
  for name, value in given.items():
    FLAGS[name].check(value)
    if name in (*methods.PARTS, 'network'):
      given[name] = methods.normalized(name, value)
  method = given.pop('method', None)
  names = [name for name in FLAGS if name != 'method']
  s = Settings(**{**dict.fromkeys(names), 'task': 'digits', **given})
  _set_parts(s, method)
  defaults = s.defaults()
  s.partition = s.partition or defaults['partition']
  for name in names:
    other, values = methods.ONLY_WITH.get(name, ('task', (s.task,)))
    found = getattr(s, other)
    if other == 'personalization':
      found = s.personalization_in_tests
    if found in values and getattr(s, name) is None:
      setattr(s, name, defaults.get(name))
    elif found not in values and name in given:
      raise errors.UserError(
        f'--{name}={given[name]} has no effect with --{other}={found}, only'
        f' with --{other}={" or ".join(values)}. Leave it out.'
      )
  _check_sizes(s, defaults)
  return s


def _set_parts(s: Settings, method: str | None) -> None:
  """Sets the parts of the method that are not given; all must go together."""
  row = methods.METHODS[method or 'pfl_dyn']
  s.correction = s.correction or row.correction
  if s.personalization is None:
    default = catalog.defaults(s.task)['personalization']
    s.personalization = default if row.personalizes else 'none'
  if method not in (None, s.method):
    raise errors.UserError(
      f'--method={method} does not go with --correction={s.correction}'
      f' --personalization={s.personalization}, which is'
      f' {s.method or "none of the methods"}. For tests alone there is'
      ' --tested_personalization.'
    )
  if s.tested_personalization and s.personalization != 'none':
    raise errors.UserError(
      f'--tested_personalization={s.tested_personalization} is for methods'
      ' that train without personalization, but here'
      f' --personalization={s.personalization}.'
    )


def _check_sizes(s: Settings, defaults: Mapping[str, Any]) -> None:
  """Raises a `UserError` if clients or classes are more than there are."""
  is_natural = defaults['partition'] == 'natural'
  if (s.partition == 'natural') != is_natural:
    right = 'natural' if is_natural else 'acid, alid or dirichlet'
    raise errors.UserError(
      f'--partition={s.partition} does not go with --task={s.task}: take'
      f' --partition={right}.'
    )
  users = defaults['num_clients'] if is_natural else None
  classes = catalog.TASKS[s.task].classes
  training = s.num_clients - s.num_held_out
  for name, most, what in (
    ('num_clients', users, f'the number of users in {s.task}'),
    ('classes_per_client', classes, f'the number of classes in {s.task}'),
    (
      'clients_per_round',
      training,
      '--num_clients less those of --held_out_share',
    ),
  ):
    value = getattr(s, name)
    if None not in (value, most) and value > most:
      raise errors.UserError(
        f'--{name}={value} must be at most {most}, {what}.'
      )


def with_effect(given: Mapping[str, Any]) -> dict[str, Any]:
  """The given values without those that have no effect with the others."""
  main = {k: v for k, v in given.items() if k not in methods.ONLY_WITH}
  s = resolve(**main)
  return main | {
    name: value
    for name, value in given.items()
    if name in methods.ONLY_WITH and getattr(s, name) is not None
  }


def with_tuned(path: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
  """The given values, and what a file of `tasks.tune` has for the others."""
  if path is None:
    return dict(given)
  try:
    with open(path) as file:
      content = json.load(file)
    tuned_for = {name: content[name] for name in ('task', 'partition')}
    chosen: dict[str, dict[str, Any]] = content['chosen']
  except (OSError, ValueError, LookupError, TypeError) as e:
    raise errors.UserError(
      f'--tuned={path} must be a file tuned.json of tasks.tune: {e}.'
    ) from e
  for name, value in tuned_for.items():
    if given.get(name, value) != value:
      raise errors.UserError(
        f'--tuned={path} is for --{name}={value}, not {given[name]}.'
      )
  key = resolve(**{**tuned_for, **given}).key
  if key not in chosen:
    raise errors.UserError(
      f'--tuned={path} has no {key}, only {", ".join(chosen)}.'
    )
  return {**tuned_for, **chosen[key], **given}


def given(args: cli.Args) -> dict[str, Any]:
  """The values of the flags that give settings, by name."""
  return {k: v for k, v in vars(args).items() if k in FLAGS and v is not None}


def help_defaults(args: cli.Args) -> dict[str, Any]:
  """The values that `--help` shows for settings that no flag gives."""
  settings = resolve(**given(args))
  return settings.defaults() | vars(settings) | {'method': settings.method}
