import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
  *('README.md', 'tasks/README.md', 'tests/README.md'),
  *('colab/results/README.md', '.github/CONTRIBUTING.md'),
]


@pytest.mark.slow
def test_the_library_example_shows_what_personalization_gains(tmp_path):
  text = (ROOT / 'README.md').read_text()
  example = re.findall(r'```python\n(.*?)```', text, re.S)[0]
  path = tmp_path / 'example.py'
  path.write_text(example)
  done = subprocess.run(
    [sys.executable, path],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  before, after = map(float, re.findall(r'^\w+\(.*\): (.*)', done.stdout, re.M))
  # Devices disagree, so one model for all is right half the time.
  assert before < 0.65 and after > 0.8, done.stderr
  assert not done.stderr  # TensorFlow's log.


@pytest.mark.parametrize('page', PAGES)
def test_links_and_pictures_lead_to_files(page):
  links = re.findall(r'\]\((.*?)\)', (ROOT / page).read_text())
  for link in links:
    if not link.startswith('http'):
      assert (ROOT / page).parent.joinpath(link).exists(), link


def test_commands_name_programs_and_tasks_that_there_are():
  text = '\n'.join((ROOT / page).read_text() for page in PAGES)
  modules = set(re.findall(r'python -m ((?:tasks|colab)\.\w+)', text))
  assert {'tasks.train', 'tasks.compare', 'colab.reference'} <= modules
  for module in modules:
    assert (ROOT / f'{module.replace(".", "/")}.py').is_file(), module


def test_flags_are_those_of_the_programs():
  known = set()
  for name in ('train', 'compare', 'tune', 'evaluate', 'personalize'):
    done = subprocess.run(
      [sys.executable, '-m', f'tasks.{name}', '--help'],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    known |= set(re.findall(r'--(?:\[no\])?(\w+)', done.stdout))
  for page in ('tasks/README.md', 'colab/results/README.md'):
    flags = set(re.findall(r'--(\w\w+_?\w*)[= `]', (ROOT / page).read_text()))
    others = {'help', 'group', 'port', 'logdir'}  # Of other programs.
    assert flags <= known | others, page
