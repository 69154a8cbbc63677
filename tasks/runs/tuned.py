"""Reads and writes the settings that `tasks.tune` has chosen."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from absl import flags

from tasks.runs import errors
from tasks.runs import settings as settings_lib

# The flag defined here is one of the program that asks for it.
flags.disclaim_key_flags()


def define_flag() -> flags.FlagHolder[str | None]:
  """Defines the flag --tuned, a path for `load`."""
  return flags.DEFINE_string(
    'tuned',
    None,
    'The file tuned.json of tasks.tune. Its partition and its choice for the'
    ' method are taken where no flag gives the setting.',
  )


def key(settings: settings_lib.Settings) -> str:
  """The method and the tests' personalization, as `pfl_dyn/maml`."""
  return '/'.join(settings.method_names)


@dataclasses.dataclass(frozen=True)
class Tuned:
  """The settings chosen for each method, by its `key`, and the way to them."""

  task: str
  partition: str
  chosen: Mapping[str, Mapping[str, Any]]
  origin: Mapping[str, Any]

  def save(self, path: str) -> None:
    """Writes what `load` reads."""
    with open(path, 'w') as file:
      json.dump(dataclasses.asdict(self), file, indent=1)

  def apply(self, settings: settings_lib.Settings) -> settings_lib.Settings:
    """Puts what was chosen for the settings that are `None`."""
    for name in ('task', 'partition'):
      found, given = getattr(self, name), getattr(settings, name)
      if given not in (None, found):
        raise errors.UserError(
          f'The file of --tuned is for --{name}={found}, not {given}.'
        )
    if key(settings) not in self.chosen:
      raise errors.UserError(
        f'The file of --tuned has no {key(settings)}, only'
        f' {", ".join(self.chosen)}.'
      )
    chosen = {'partition': self.partition, **self.chosen[key(settings)]}
    return dataclasses.replace(
      settings,
      **{
        name: settings_lib.parse(name, str(value))
        for name, value in chosen.items()
        if getattr(settings, name) is None
      },
    )


def load(path: str) -> Tuned:
  """Reads a file of `Tuned.save`."""
  try:
    with open(path) as file:
      tuned = Tuned(**json.load(file))
    if not all(isinstance(v, dict) for v in tuned.chosen.values()):
      raise TypeError('a choice is not a mapping')
    return tuned
  except FileNotFoundError as e:
    raise errors.UserError(
      f'There is no file --tuned={path}. python -m tasks.tune writes it.'
    ) from e
  except (ValueError, TypeError, AttributeError, OSError) as e:
    raise errors.UserError(
      f'--tuned={path} is no file of tasks.tune, or damaged:'
      f' {errors.first_line(e)}.'
    ) from e
