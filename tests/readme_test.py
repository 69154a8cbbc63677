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


def test_the_library_example_shows_what_a_local_step_gains(tmp_path):
  examples = re.findall(
    r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S
  )
  path = tmp_path / 'example.py'
  path.write_text(examples[0])
  done = subprocess.run(
    [sys.executable, path], cwd=ROOT, capture_output=True, text=True
  )
  assert not done.returncode, done.stderr
  numbers = re.findall(
    r'round .*: (.*), after one local step (.*)', done.stdout
  )
  before, after = map(float, numbers[-1])
  # Devices number their classes otherwise, so no single model is right for all.
  assert before < 0.35 and after > 0.7
  assert 'tensorflow' not in done.stderr.lower()


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
