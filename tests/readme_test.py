import importlib.metadata
import pathlib
import re

import yaml

README = pathlib.Path(__file__).parents[1] / 'README.md'


def test_the_library_example_runs_and_personalizes(capsys):
  (example,) = re.findall(r'```python\n(.*?)```', README.read_text(), re.S)
  exec(compile(example, 'README.md', 'exec'), {})
  mean = re.search(r"'mean', ([0-9.]+)", capsys.readouterr().out)
  # Devices disagree about the labels, so one model for all is right half the
  # time.
  assert float(mean[1]) > 0.9


def test_the_picture_is_there():
  for picture in re.findall(r'!\[.*?\]\((.*?)\)', README.read_text()):
    assert (README.parent / picture).is_file()


def test_both_forms_of_the_citation_agree():
  text = README.read_text()
  bibtex = {
    name: ' '.join(value.split())
    for name, value in re.findall(r'^  (\w+) = \{(.*?)\},?$', text, re.S | re.M)
  }
  cff = yaml.safe_load(
    (README.parent / 'tff_debias' / 'CITATION.cff').read_text()
  )
  assert cff['version'] == importlib.metadata.version('tff_debias')
  paper = cff['preferred-citation']
  assert bibtex == {
    'title': paper['title'],
    'author': ' and '.join(
      f'{author["family-names"]}, {author["given-names"]}'
      for author in paper['authors']
    ),
    'booktitle': paper['collection-title'],
    'series': 'Proceedings of Machine Learning Research',
    'volume': str(paper['volume']),
    'pages': f'{paper["start"]}--{paper["end"]}',
    'year': str(paper['year']),
    'publisher': paper['publisher']['name'],
  }
