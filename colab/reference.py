"""Builds the API reference from the docstrings, with the notebooks as pages.

    uv run --group=docs python -m colab.reference FOLDER

writes web pages; `index.html` has the links.
"""

import logging
import pathlib
import sys
import warnings

import nbconvert
import pdoc

from colab import notebooks
import tff_debias


def build(folder: pathlib.Path) -> None:
  """Builds all pages.

  Args:
    folder: Where to write them.

  Raises:
    UserWarning: If pdoc warns, for example of an annotation without a meaning.
  """
  pdoc.render.configure(docformat='google')
  with warnings.catch_warnings():
    warnings.simplefilter('error', UserWarning)
    pdoc.pdoc(tff_debias.__name__, output_directory=folder)
  pages = {'tff_debias.html': 'The library'}
  exporter = nbconvert.HTMLExporter()
  exporter.log.setLevel(logging.ERROR)  # Pictures have no other text.
  for path in sorted(notebooks.FOLDER.glob('*.ipynb')):
    html, _ = exporter.from_filename(path)
    page = path.with_suffix('.html').name
    (folder / page).write_text(html)
    pages[page] = f'Notebook: {path.stem}'
  links = ''.join(
    f'<li><a href="{page}">{title}</a></li>' for page, title in pages.items()
  )
  (folder / 'index.html').write_text(
    f'<!doctype html><meta charset="utf-8"><title>tff_debias</title>'
    f'<h1>tff_debias</h1><ul>{links}</ul>'
  )


if __name__ == '__main__':
  build(pathlib.Path(sys.argv[1]))
