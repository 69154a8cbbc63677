import datetime
import importlib.metadata
import os
import subprocess

from tasks.reports import provenance


def test_names_the_commit_that_git_names():
  here = os.path.dirname(__file__)
  commit = subprocess.check_output(
    ['git', 'rev-parse', 'HEAD'], cwd=here, text=True
  )
  assert f'commit {commit[:10]}' in provenance.version()
  number = importlib.metadata.version('tff_debias')
  assert provenance.version().startswith(f'tff_debias {number}, commit')


def test_without_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
  monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'a.py'))
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  assert 'commit' not in provenance.version()


def test_the_date_is_todays():
  age = datetime.date.today() - datetime.date.fromisoformat(provenance.today())
  assert 0 <= age.days <= 1
