import re

import pytest

from colab import notebooks
from colab import reference
import tff_debias

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp('reference')
  reference.build(folder)
  return folder


def test_the_reference_has_all_names_and_notebooks(built):
  page = (built / 'tff_debias.html').read_text()
  modules = {'partitions', 'runtime'}
  sections = re.findall(r'<section id="(\w+)">', page)
  assert set(sections) == set(tff_debias.__all__) - modules
  for module in modules:
    assert (built / 'tff_debias' / f'{module}.html').is_file()
  index = (built / 'index.html').read_text()
  links = re.findall('href="([^:]*?)"', index)
  assert all((built / link.partition('#')[0]).is_file() for link in links)
  names = [path.stem for path in notebooks.FOLDER.glob('*.ipynb')]
  shown = re.findall(r'<td><a href=".*?">(\w+)</a>', index)
  assert sorted(shown) == sorted([*tff_debias.__all__, *names])


def test_signatures_are_those_that_users_write(built):
  page = (built / 'tff_debias.html').read_text()
  signature = re.search(r'name">build_pfl_dyn</span>(.*?)</div>', page, re.S)[1]
  text = re.sub('<.*?>', '', signature)
  assert 'num_clients' in text and 'options' not in text
  assert 'rate_fn: Callable[[tf.Tensor], tf.Tensor]' in text
  assert '-> tff.learning.templates.LearningProcess' in text
