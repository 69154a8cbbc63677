"""Builds the API reference from the docstrings, with the notebooks as pages.

    uv run --group=docs python -m colab.reference FOLDER

writes web pages; `index.html` is the first.
"""

import collections
import html
import inspect
import logging
import pathlib
import re
import sys
import warnings

import nbconvert
import pdoc

from colab import notebooks
import tff_debias

_TITLES = {
  'learning_process': 'Methods of your own',
  'methods': 'Methods',
  'personalizations': 'Personalizations',
  'corrections': 'Corrections',
  'models': 'Models',
  'client_data': 'Data',
  'partitions': 'Data',
  'evaluation': 'Evaluation',
  'export': 'A model for a device',
  'privacy': 'Privacy',
  'storage': 'States of clients',
  'runtime': 'Runtime',
}
_INTRODUCTION = """
<h1>tff_debias</h1>
<p>Debiased personalized federated training in TensorFlow Federated:
<a href="https://proceedings.mlr.press/v139/acar21a.html">Acar et al., ICML
2021</a>. A method is a <em>personalization</em>, by which a device adapts the
common model, and a <em>correction</em>, which removes the bias of averaging.
Every pair is a <code>LearningProcess</code> of TFF.</p>
<p>Start with the notebook <a href="quickstart.html">quickstart</a>. Then see
<code>from_keras</code> for your network, a builder below for the method, and
<code>build_personalized_evaluation</code> for its accuracy on each device.</p>
"""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto;
  padding: 0 1em; color: #222 }
h2 { font-size: 1.1em; border-bottom: 1px solid #ddd; margin-top: 2em }
td { padding: .15em 1.5em .15em 0; vertical-align: top }
code, td:first-child { font: 14px/1.6 ui-monospace, monospace }
a { color: #0b5394; text-decoration: none }
"""
# Breaks long types in a signature.
_WRAPPED = '<style>.pdoc .param {white-space: pre-wrap}</style>'


def build(folder: pathlib.Path) -> None:
  """Builds all pages.

  Args:
    folder: Where to write them.

  Raises:
    UserWarning: If pdoc warns, for example of an annotation without a meaning.
  """
  for name in tff_debias.__all__:
    function = getattr(tff_debias, name)
    if hasattr(function, '__wrapped__'):  # pdoc would show `**options`.
      function.__wrapped__.__signature__ = inspect.signature(function)
  pdoc.render.configure(docformat='google', show_source=False)
  with warnings.catch_warnings():
    warnings.simplefilter('error', UserWarning)
    pdoc.pdoc(tff_debias.__name__, output_directory=folder)
  for page in folder.rglob('*.html'):
    text = _with_public_names(page.read_text())
    page.write_text(text.replace('</body>', f'{_WRAPPED}</body>'))
  pages = {}
  exporter = nbconvert.HTMLExporter()
  exporter.log.setLevel(logging.ERROR)  # Pictures have no other text.
  for path in sorted(notebooks.FOLDER.glob('*.ipynb')):
    text, _ = exporter.from_filename(path)
    page = path.with_suffix('.html').name
    (folder / page).write_text(text)
    text = notebooks.read(path.with_suffix('.md')).cells[0].source
    pages[page] = path.stem, text.split('\n')[0].strip('# ')
  (folder / 'index.html').write_text(_index(pages))


def _with_public_names(text: str) -> str:
  """Shows classes as users write them, not where they are defined."""
  dot, name = '<span class="o">.</span>', r'<span class="n">(\w+)</span>'
  root = '<span class="n">(?:tensorflow_federated|tensorflow)</span>'
  path = rf'{root}(?:{re.escape(dot)}{name})+'

  def shorten(match: re.Match[str]) -> str:
    # The second is `python`, and the last but one is a file.
    names = re.findall(r'<span class="n">(\w+)', match[0])
    parts = ['tf'] if names[0] == 'tensorflow' else ['tff', *names[2:-2]]
    return f'<span class="n">{".".join([*parts, names[-1]])}</span>'

  return re.sub(path, shorten, text)


def _index(pages: dict[str, tuple[str, str]]) -> str:
  """The first page; `pages` are the file, the name and the title of each."""
  groups = collections.defaultdict(list)
  for name in tff_debias.__all__:
    value = getattr(tff_debias, name)
    module = getattr(value, '__module__', value.__name__).split('.')[1]
    page = f'tff_debias.html#{name}'
    if inspect.ismodule(value):
      page = f'tff_debias/{name}.html'
    line = html.escape(inspect.getdoc(value).split('\n')[0])
    line = re.sub('`(.*?)`', r'<code>\1</code>', line)
    line = re.sub(r'\*(\w+)\*', r'<em>\1</em>', line)
    title = _TITLES.get(module, module.replace('_', ' ').capitalize())
    groups[title].append((page, name, line))
  groups['Notebooks'] = [(page, *texts) for page, texts in pages.items()]
  tables = ''.join(
    f'<h2>{title}</h2><table>'
    + ''.join(
      f'<tr><td><a href="{page}">{name}</a></td><td>{line}</td></tr>'
      for page, name, line in rows
    )
    + '</table>'
    for title, rows in groups.items()
  )
  return (
    '<!doctype html><meta charset="utf-8"><title>tff_debias</title>'
    f'<style>{_STYLE}</style>{_INTRODUCTION}{tables}'
  )


if __name__ == '__main__':
  build(pathlib.Path(sys.argv[1]))
