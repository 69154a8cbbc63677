from tasks.reports import provenance


def test_without_a_checkout_there_is_a_version_and_no_commit(
  monkeypatch, tmp_path
):
  assert ', commit ' in provenance.version()
  monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'a.py'))
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  assert provenance.version().startswith('tff_debias ')
  assert 'commit' not in provenance.version()
