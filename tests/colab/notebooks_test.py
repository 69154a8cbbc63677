import copy

import jupyter_client
import nbformat
import pytest

from colab import notebooks

PATHS = sorted(
  {
    path.with_suffix('')
    for pattern in ('*.md', '*.ipynb')
    for path in notebooks.FOLDER.glob(pattern)
  }
)
TEXT = """\
```python tags=["parameters"]
FAST = False
```

```python
import sys

print('INFO: Created TensorFlow Lite delegate.', file=sys.stderr)
print('fast' if FAST else 'slow')
```
"""


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.name)
def test_stored_notebooks_are_up_to_date(path, first_cell):
  stored = nbformat.read(path.with_suffix('.ipynb'), as_version=4)
  text = notebooks.read(path.with_suffix('.md'))
  assert not notebooks.find_faults(stored, text)
  code = [cell.source for cell in stored.cells if cell.cell_type == 'code']
  assert code[0] == first_cell


@pytest.mark.slow(seconds=180)
def test_notebooks_run_in_colab(outer, marked, monkeypatch):
  """One after another in one kernel, which has to start TensorFlow once."""
  # With this variable ipykernel shows nothing that C code writes.
  monkeypatch.delenv('PYTEST_CURRENT_TEST')
  parts = {p: nbformat.read(p.with_suffix('.ipynb'), 4) for p in PATHS}
  stored = nbformat.v4.new_notebook()
  for path, part in parts.items():
    for cell in [*part.cells, nbformat.v4.new_code_cell('%reset -f')]:
      cell.id = f'{path.name}-{cell.id}'
      stored.cells.append(cell)
  notebook = copy.deepcopy(stored)
  manager_class, mark = outer.manager_class(jupyter_client.AsyncKernelManager)
  try:
    notebooks.run(notebook, notebooks.FOLDER, manager_class, fast=True)
  finally:
    for process in marked(mark):
      process.wait(timeout=10)
  assert not notebooks.find_picture_faults(notebook, stored)
  for path, part in parts.items():
    own = [c for c in notebook.cells if c.id.startswith(f'{path.name}-')]
    # The first cell names the version of Python.
    cells = [c for c in own if 'kernel.py' not in c.source]
    found, fast = notebooks.numbers(cells), part.metadata.tff_debias.get('fast')
    # Else the package gives other numbers: make the notebook anew.
    assert not fast or found == pytest.approx(fast, 0.05, 0.05), path.name


def test_outputs_of_other_cells_are_found(tmp_path):
  path = tmp_path / 'example.md'
  path.write_text(TEXT)
  stored = notebooks.read(path)
  notebooks.run(stored, tmp_path, fast=True)
  (output,) = stored.cells[1].outputs
  assert output.text == 'fast\n'
  assert not notebooks.find_faults(stored, notebooks.read(path))

  def faults_after(change):
    changed = copy.deepcopy(stored)
    change(changed.cells[1])
    return notebooks.find_faults(changed, notebooks.read(path))

  assert faults_after(lambda cell: cell.update(source='1 + 1')) == [
    'Its cells are not those of its text form.',
    'Its outputs are of other cells.',
  ]
  assert (
    'from top to bottom'
    in (faults_after(lambda cell: cell.update(execution_count=7))[0])
  )
  new_output = nbformat.v4.new_output
  for output, fault in (
    (new_output('error'), 'failed'),
    (new_output('stream', name='stderr'), 'shows warnings'),
    (new_output('stream', text='Traceback (most'), 'shows a traceback'),
  ):
    faults = faults_after(lambda c, o=output: c.outputs.append(o))
    assert faults == [f'Code cell 1 {fault}.']
  # As jupytext --sync leaves it.
  path.write_text(TEXT.replace("'slow'", "'slower'"))
  changed = copy.deepcopy(stored)
  changed.cells[1].source = notebooks.read(path).cells[1].source
  assert notebooks.find_faults(changed, notebooks.read(path)) == [
    'Its outputs are of other cells.'
  ]
