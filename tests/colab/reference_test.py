import re

from colab import notebooks
from colab import reference
import tff_debias


def test_the_reference_has_all_names_and_notebooks(tmp_path):
  reference.build(tmp_path)
  page = (tmp_path / 'tff_debias.html').read_text()
  modules = {'partitions', 'runtime'}
  sections = re.findall(r'<section id="(\w+)">', page)
  assert set(sections) == set(tff_debias.__all__) - modules
  for module in modules:
    assert (tmp_path / 'tff_debias' / f'{module}.html').is_file()
  index = (tmp_path / 'index.html').read_text()
  links = re.findall('href="(.*?)"', index)
  assert all((tmp_path / link).is_file() for link in links)
  assert len(links) == 1 + len(list(notebooks.FOLDER.glob('*.ipynb')))
