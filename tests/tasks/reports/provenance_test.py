import subprocess

from tasks.reports import provenance


def test_names_the_commit_or_says_that_there_is_none(monkeypatch, tmp_path):
  head = subprocess.check_output(['git', 'rev-parse', 'HEAD'], text=True)
  assert head[:10] in provenance.origin()['version']
  monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'a.py'))
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  assert provenance.origin()['version'] == 'tff_debias, commit unknown'
