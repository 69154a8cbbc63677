"""Makes the notebooks of their text forms, with outputs.

    uv run python -m colab.notebooks colab/quickstart.md

runs the cells of `quickstart.md` and writes `quickstart.ipynb`; without an
argument, all notebooks. One cell of each has the tag `parameters`, and in it a
line `FAST = False`, which tests set to True. The numbers that such a run prints
are stored too, so that tests notice where the package gives others.
"""

import base64
from collections.abc import Sequence
import hashlib
import io
import json
import pathlib
import re
import sys

import jupyter_client
import jupytext
import nbclient
import nbformat
import numpy as np
from PIL import Image

FOLDER = pathlib.Path(__file__).parent


def read(path: pathlib.Path) -> nbformat.NotebookNode:
  """Returns the notebook of a text form, without outputs."""
  notebook = jupytext.read(path)
  for i, cell in enumerate(notebook.cells):
    cell.id = f'cell-{i}'  # Not another one each time.
  notebook.metadata.kernelspec = dict(
    name='python3', display_name='Python 3', language='python'
  )
  return notebook


def run(
  notebook: nbformat.NotebookNode,
  folder: pathlib.Path,
  manager_class: type[jupyter_client.KernelManager] | None = None,
  fast: bool = False,
) -> None:
  """Runs a notebook's cells in a folder and puts their outputs into it.

  Args:
    notebook: The notebook.
    folder: The folder that the notebook lies in.
    manager_class: Starts the kernel; None for one of this Python.
    fast: Whether to set FAST, for a run of reduced size.

  Raises:
    nbclient.exceptions.CellExecutionError: If a cell fails.
    ValueError: If the notebook has no cell that sets FAST.
  """
  digest = _digest(notebook)
  cells = [
    cell
    for cell in notebook.cells
    if 'parameters' in cell.metadata.get('tags', ())
  ]
  if not cells or any('FAST = False' not in cell.source for cell in cells):
    raise ValueError(
      'A cell must have the tag `parameters` and a line `FAST = False`, but'
      f' those with the tag are {[cell.source for cell in cells]}.'
    )
  sources = [cell.source for cell in cells]
  for cell in cells if fast else ():
    cell.source = cell.source.replace('FAST = False', 'FAST = True')
  options = (
    {} if manager_class is None else dict(kernel_manager_class=manager_class)
  )
  nbclient.NotebookClient(
    notebook,
    timeout=1200,
    record_timing=False,
    coalesce_streams=True,  # Of a progress bar only its last state is kept.
    resources={'metadata': {'path': str(folder)}},
    **options,
  ).execute()
  for cell, source in zip(cells, sources, strict=True):
    cell.source = source
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      cell.outputs = [o for o in cell.outputs if not _is_information(o)]
  notebook.metadata.tff_debias = dict(digest=digest)


def _is_information(output: nbformat.NotebookNode) -> bool:
  """Whether it is what TensorFlow Lite writes where nothing is wrong."""
  return output.get('name') == 'stderr' and all(
    line.startswith('INFO: ') for line in output.text.split('\n') if line
  )


def find_faults(
  notebook: nbformat.NotebookNode, text: nbformat.NotebookNode
) -> list[str]:
  """Returns what is wrong with a stored notebook, given its text form."""
  faults = []
  if _digest(notebook) != _digest(text):
    faults.append('Its cells are not those of its text form.')
  made_of = notebook.metadata.get('tff_debias', {}).get('digest')
  if made_of != _digest(notebook):
    faults.append('Its outputs are of other cells.')
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  counts = [cell.execution_count for cell in code]
  if counts != list(range(1, len(code) + 1)):
    faults.append(f'Its cells were not run from top to bottom: {counts}.')
  for i, cell in enumerate(code):
    if any(o.output_type == 'error' for o in cell.outputs):
      faults.append(f'Code cell {i} failed.')
    if any(o.get('name') == 'stderr' for o in cell.outputs):
      faults.append(f'Code cell {i} shows warnings.')
    # Of a program that a cell starts with `!`.
    if any('Traceback (most' in o.get('text', '') for o in cell.outputs):
      faults.append(f'Code cell {i} shows a traceback.')
  return faults + find_picture_faults(notebook, notebook)


def find_picture_faults(
  notebook: nbformat.NotebookNode, stored: nbformat.NotebookNode
) -> list[str]:
  """Returns which pictures of a stored notebook lack or are blank in a run."""
  faults = []
  for i, (cell, other) in enumerate(
    zip(notebook.cells, stored.cells, strict=True)
  ):
    pictures = _pictures(cell)
    if len(pictures) < len(_pictures(other)):
      faults.append(f'Cell {i} shows {len(pictures)} of its pictures.')
    if any(picture.std(axis=(0, 1)).max() < 1 for picture in pictures):
      faults.append(f'Cell {i} shows a blank picture.')
  return faults


def numbers(cells: Sequence[nbformat.NotebookNode]) -> list[float]:
  """Returns the decimal numbers that the cells print."""
  texts = [
    output.text
    for cell in cells
    for output in cell.get('outputs', ())
    if output.get('name') == 'stdout'
  ]
  return [float(n) for n in re.findall(r'-?\b\d+\.\d+\b', '\n'.join(texts))]


def _pictures(cell: nbformat.NotebookNode) -> list[np.ndarray]:
  return [
    np.asarray(
      Image.open(
        io.BytesIO(base64.b64decode(output.data['image/png']))
      ).convert('RGB')
    )
    for output in cell.get('outputs', ())
    if 'image/png' in output.get('data', {})
  ]


def _digest(notebook: nbformat.NotebookNode) -> str:
  cells = [
    (cell.cell_type, cell.source, cell.metadata.get('tags', []))
    for cell in notebook.cells
  ]
  return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def main(paths: Sequence[str]) -> None:
  """Makes notebooks."""
  for path in map(pathlib.Path, paths or sorted(FOLDER.glob('*.md'))):
    notebook, fast = read(path), read(path)
    run(notebook, path.parent)
    run(fast, path.parent, fast=True)
    notebook.metadata.tff_debias.fast = numbers(fast.cells)
    nbformat.write(notebook, path.with_suffix('.ipynb'))
    if faults := find_faults(notebook, read(path)):
      sys.exit(f'{path}: {" ".join(faults)}')


if __name__ == '__main__':
  main(sys.argv[1:])
