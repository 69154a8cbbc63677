"""Reads the settings that `tasks.tune` has chosen."""

import dataclasses
import json
from typing import Any

from tasks import cli
from tasks.runs import errors
from tasks.runs import settings as settings_lib


def add_flag(parser: cli.Parser) -> None:
  """Adds the flag --tuned, a path for `apply`."""
  parser.add(
    'method',
    'tuned',
    'The file tuned.json of tasks.tune. Its partition and its choice for the'
    ' method are taken where no flag gives the setting.',
  )


def key(settings: settings_lib.Settings) -> str:
  """The method and the tests' personalization, as `pfl_dyn/maml`."""
  return '/'.join(settings.method_names)


def apply(
  path: str | None, settings: settings_lib.Settings
) -> settings_lib.Settings:
  """Puts what a file has chosen for the settings that are `None`."""
  if path is None:
    return settings
  try:
    with open(path) as file:
      content = json.load(file)
    found = {'task': content['task'], 'partition': content['partition']}
    chosen: dict[str, dict[str, Any]] = content['chosen']
    values = found | chosen.get(key(settings), {})
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
    raise errors.UserError(
      f'--tuned={path} must be a file tuned.json of tasks.tune: {e}.'
    ) from e
  for name, value in found.items():
    if getattr(settings, name) not in (None, value):
      raise errors.UserError(
        f'--tuned={path} is for --{name}={value}, not'
        f' {getattr(settings, name)}.'
      )
  if key(settings) not in chosen:
    raise errors.UserError(
      f'--tuned={path} has no {key(settings)}, only {", ".join(chosen)}.'
    )
  return dataclasses.replace(
    settings,
    **{k: v for k, v in values.items() if getattr(settings, k) is None},
  )
