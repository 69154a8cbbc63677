import os

import pytest

from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib

SETTINGS = settings_lib.resolve(alpha=0.1)


def listing(path):
  return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


def test_a_claim_is_kept(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path))
  # A process was killed before it had written the settings.
  (tmp_path / 'settings.json.new').write_text('{"alpha": 0.')
  folder.claim(SETTINGS)
  assert folder.read() == SETTINGS
  before = listing(tmp_path)
  folder.claim(SETTINGS)
  assert listing(tmp_path) == before


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    (None, r'other settings: --alpha=0.1 there, 0.2 here; --seed=0 there, 1'),
    ({'thesis.txt': 'mine'}, 'holds no run, but thesis.txt'),
    ({'settings.json': '{"alpha": 0.'}, 'holds no run of this version'),
    # As version 0.1 wrote them.
    (
      {'settings.json': '{"run": "a", "settings": {"alpha": 0.2, "seed": 1}}'},
      "holds no run of this version: 'run'",
    ),
  ],
)
def test_refuses_a_folder_of_others_and_changes_nothing(
  tmp_path, files, message
):
  folder = folder_lib.RunFolder(str(tmp_path))
  if files is None:
    folder.claim(SETTINGS)
  for name, content in (files or {}).items():
    (tmp_path / name).write_text(content)
  before = listing(tmp_path)
  with pytest.raises(errors.UserError, match=message):
    folder.claim(settings_lib.resolve(alpha=0.2, seed=1))
  assert listing(tmp_path) == before


def test_only_one_process_has_the_folder(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path / 'new'))
  with folder.lock():
    with pytest.raises(
      errors.UserError, match=f'Process {os.getpid()} is running'
    ):
      with folder.lock():
        pass
  with folder.lock():
    pass


def test_says_that_it_cannot_write(tmp_path):
  (tmp_path / 'file').write_text('')
  folder = folder_lib.RunFolder(str(tmp_path / 'file'))
  with pytest.raises(errors.UserError, match='Cannot write to'):
    with folder.lock():
      pass


def test_a_folder_without_a_run_is_named(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path / 'none'))
  with pytest.raises(errors.UserError, match='none holds no run'):
    folder.read()
  assert folder.read_metrics() == []
