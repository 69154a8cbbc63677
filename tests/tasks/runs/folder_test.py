import os

import pytest

from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib

SETTINGS = settings_lib.Settings(alpha=0.1)


def listing(path):
  return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


def test_a_second_claim_gives_the_same_run(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path))
  run = folder.claim(SETTINGS)
  assert folder.claim(SETTINGS) == run
  assert folder.read() == (SETTINGS, run)
  other = folder_lib.RunFolder(str(tmp_path / 'other'))
  os.mkdir(other.path)
  assert other.claim(SETTINGS) != run


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    (None, r'other settings: --alpha=0.1 there, 0.2 here; --seed=0 there, 1'),
    ({'thesis.txt': 'mine'}, 'holds no run .* but thesis.txt'),
    ({'settings.json': '{"run": "a"'}, 'settings.json is damaged'),
    ({'settings.json': '{"run": "a", "settings": 3}'}, 'is damaged'),
    (
      {'settings.json': '{"run": "a", "settings": {"participants": 1}}'},
      r'another version .* \(unknown here: participants; missing there: .*task',
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
  with pytest.raises(folder_lib.RunFolderError, match=message):
    folder.claim(settings_lib.Settings(alpha=0.2, seed=1))
  assert listing(tmp_path) == before


def test_only_one_process_has_the_folder(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path / 'new'))
  with folder.lock():
    with pytest.raises(folder_lib.RunFolderError, match=str(os.getpid())):
      with folder.lock():
        pass
  with folder.lock():
    pass


def test_says_that_it_cannot_write(tmp_path):
  (tmp_path / 'file').write_text('')
  folder = folder_lib.RunFolder(str(tmp_path / 'file'))
  with pytest.raises(folder_lib.RunFolderError, match='Cannot write to'):
    with folder.lock():
      pass


def test_repairs_metrics_that_end_in_half_a_line(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path))
  folder.repair_metrics()
  (tmp_path / 'metrics.csv').write_bytes(b'round,a\r\n11,0.5\r\n1')
  folder.repair_metrics()
  assert folder.read_metrics() == [{'round': 11.0, 'a': 0.5}]


def test_evaluations_are_the_rounds_with_a_test(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path))
  accuracy = 'evaluation/by_client/accuracy'
  names = ['round', 'distributor/models', 'aggregator/models']
  names += [f'{accuracy}/{name}' for name in ('mean', 'q10', 'q90')]
  lines = [names, [0, '', '', 0.1, 0, 0.2], [1, 3, 4, '', '', '']]
  lines += [[2, 6, 8, 0.5, 0.25, 0.75]]
  (tmp_path / 'metrics.csv').write_text(
    '\n'.join(','.join(map(str, line)) for line in lines) + '\n'
  )
  assert folder_lib.evaluations(folder.read_metrics()) == [
    {'round': 0, 'models': 0, 'accuracy': 0.1, 'low': 0, 'high': 0.2},
    {'round': 2, 'models': 14, 'accuracy': 0.5, 'low': 0.25, 'high': 0.75},
  ]
