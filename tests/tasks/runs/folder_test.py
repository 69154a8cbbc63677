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
    ({'settings.json': '[' * 100_000}, r'is damaged .* Put it back'),
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


def test_a_lock_that_is_deleted_lets_no_second_process_in(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path))
  with folder.lock():
    os.remove(tmp_path / 'lock')
    with pytest.raises(folder_lib.RunFolderError, match='is running in'):
      with folder.lock():
        pass
  with folder.lock():
    pass


def test_what_a_killed_process_left_is_removed(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path))
  (tmp_path / 'settings.json.new').write_text('{"run": "a')
  (tmp_path / '.DS_Store').write_text('')
  folder.claim(SETTINGS)
  os.makedirs(tmp_path / 'checkpoints' / 'program_state_3_temp1234' / 'assets')
  os.mkdir(tmp_path / 'checkpoints' / 'program_state_3')
  for name in ('metrics.csv_temp9999', 'metrics.csv.new', 'meta_model.keras'):
    (tmp_path / name).write_text('')
  folder.claim(SETTINGS)
  assert set(os.listdir(tmp_path)) == {
    '.DS_Store',
    'settings.json',
    'checkpoints',
    'meta_model.keras',
  }
  assert os.listdir(tmp_path / 'checkpoints') == ['program_state_3']


@pytest.mark.parametrize('name', ['storage', 'checkpoints', 'metrics.csv'])
def test_a_link_in_the_folder_is_refused_and_not_followed(tmp_path, name):
  (tmp_path / 'others').mkdir()
  victim = tmp_path / 'others' / 'program_state_3_temp1234'
  victim.mkdir()
  folder = folder_lib.RunFolder(str(tmp_path / 'run'))
  os.mkdir(folder.path)
  folder.claim(SETTINGS)
  os.symlink(tmp_path / 'others', tmp_path / 'run' / name)
  with pytest.raises(folder_lib.RunFolderError, match=f'{name} is a symbolic'):
    folder.claim(SETTINGS)
  assert victim.is_dir()


def test_metrics_without_the_end_of_their_last_line(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path))
  assert folder.read_metrics() == []
  (tmp_path / 'metrics.csv').write_bytes(b'round,a\r\n0,0.5\r\n1,0')
  assert folder.read_metrics() == [{'round': 0.0, 'a': 0.5}]


@pytest.mark.parametrize(
  'content',
  [
    'round,a\n0,0.5\n2,0.5\n',
    'round,a\n1,0.5\n',
    'round,a\n0,0.5\n0,0.5\n',
    'round,a\n0,x\n',
    'a\n1\n',
    'round,a\n0,1,2\n',
    '\udcff\n1\n',
  ],
)
def test_damaged_metrics_are_named(tmp_path, content):
  path = tmp_path / 'metrics.csv'
  path.write_bytes(content.encode(errors='surrogateescape'))
  folder = folder_lib.RunFolder(str(tmp_path))
  with pytest.raises(
    folder_lib.RunFolderError, match=f'{path} is damaged .* restores it'
  ):
    folder.read_metrics()


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
  folder = folder_lib.RunFolder(str(tmp_path))
  make(folder.settings)
  with pytest.raises(folder_lib.RunFolderError, match='it is not a file'):
    folder.read()


@pytest.mark.parametrize('path', ['', ' ', 'a\nb', 'runs/*', 'a[0]', 'a\\b'])
def test_paths_that_no_folder_should_have_are_refused(path):
  with pytest.raises(folder_lib.RunFolderError, match='--output_dir='):
    folder_lib.check_output_dir(path)
  for right in (None, 'runs/digits, 3 Geräte=2'):
    folder_lib.check_output_dir(right)


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


def test_names_the_run_that_may_be_meant(tmp_path):
  for name in ('digits_maml', 'digits_proto'):
    os.mkdir(tmp_path / name)
    folder_lib.RunFolder(str(tmp_path / name)).claim(settings_lib.Settings())
  os.mkdir(tmp_path / 'empty')
  os.mkdir(tmp_path / 'cut')
  (tmp_path / 'cut' / 'settings.json').write_text('{"run": "a", "sett')
  assert folder_lib.find(f'{tmp_path}/digits_maml/').path.endswith('maml')
  for name, message in (
    ('digits_mamml', 'no such folder. Did you mean .*/digits_maml'),
    ('', 'no settings.json in it. Did you mean .*/digits_maml'),
    ('empty', 'it is empty.$'),
    ('cut', 'settings.json is damaged'),
  ):
    with pytest.raises(folder_lib.RunFolderError, match=message):
      folder_lib.find(str(tmp_path / name))
