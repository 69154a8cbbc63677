"""The pinned list is in step with pyproject.toml."""

import importlib.metadata
import itertools
import pathlib
import tomllib

from packaging import requirements
from packaging import utils
import pytest

PROJECT = pathlib.Path(__file__).parents[2]
LIST = PROJECT / 'colab' / 'requirements.txt'


def _pins():
  """Returns the versions by name, of what this machine needs."""
  pins = {}
  for line in LIST.read_text().splitlines():
    if not line.startswith('#'):
      pin = requirements.Requirement(line)
      (specifier,) = pin.specifier
      assert specifier.operator == '==' and not pin.url, line
      if pin.marker is None or pin.marker.evaluate():
        pins[utils.canonicalize_name(pin.name)] = specifier.version
  return pins


def _wanted():
  """Returns what pyproject.toml asks for on this machine."""
  settings = tomllib.loads((PROJECT / 'pyproject.toml').read_text())
  uv = settings['tool']['uv']
  entries = [
    *settings['project']['dependencies'],
    *itertools.chain(*settings['dependency-groups'].values()),
    *uv['override-dependencies'],
    *uv['constraint-dependencies'],
  ]
  for entry in entries:
    if isinstance(entry, str):  # No group that another one includes.
      wanted = requirements.Requirement(entry)
      if wanted.marker is None or wanted.marker.evaluate():
        yield wanted


@pytest.mark.parametrize('wanted', _wanted(), ids=str)
def test_has_what_pyproject_asks_for(wanted):
  version = _pins().get(utils.canonicalize_name(wanted.name))
  assert version is not None, f'{wanted} is missing in {LIST}.'
  assert wanted.specifier.contains(version), f'{wanted}, but {version}'


def test_has_all_that_its_packages_need():
  """It is installed without resolving, so nothing else would add them."""
  pins = _pins()
  overridden = {'jax', 'jaxlib'}  # As in pyproject.toml.
  for distribution in importlib.metadata.distributions():
    name = utils.canonicalize_name(distribution.metadata['name'])
    if '_vendor' in str(distribution.locate_file('')):
      continue
    if pins.get(name) != distribution.version:
      continue  # The last test names it.
    for need in map(requirements.Requirement, distribution.requires or []):
      if need.marker is None or need.marker.evaluate({'extra': ''}):
        needed = utils.canonicalize_name(need.name)
        assert needed in pins, f'{name} needs {need}.'
        if needed not in overridden:
          assert need.specifier.contains(pins[needed]), (
            f'{name} needs {need}, but {pins[needed]}'
          )
