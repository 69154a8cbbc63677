import copy
import subprocess
import sys

import jupyter_client
import nbclient
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
EXAMPLE = """
# An example

```python
{first_cell}
```

```python tags=["parameters"]
FAST = False
```

```python
from matplotlib import pyplot as plt
import sys
assert sys.version_info[:2] == (3, 11)
plt.plot([1, 2, 3] if FAST else [3, 2, 1])
plt.show()
print('fast' if FAST else 'slow')
```

```python
%%colab
import sys
print(sys.version_info[:2])
```
"""


@pytest.fixture
def example(tmp_path, first_cell):
  """Writes the text form of an example into a folder with kernel.py."""
  (tmp_path / 'kernel.py').symlink_to(notebooks.FOLDER / 'kernel.py')
  path = tmp_path / 'example.md'
  path.write_text(EXAMPLE.format(first_cell=first_cell))
  return path


@pytest.fixture
def run_in_colab(outer, marked, monkeypatch):
  # With this variable ipykernel shows nothing that C code writes.
  monkeypatch.delenv('PYTEST_CURRENT_TEST')

  def run(notebook, folder, environment):
    manager_class, mark = outer.manager_class(
      jupyter_client.AsyncKernelManager, TFF_DEBIAS_ENVIRONMENT=environment
    )
    try:
      notebooks.run(notebook, folder, manager_class, fast=True)
    finally:
      left = marked(mark)
      for process in left:
        process.wait(timeout=10)

  return run


def _text(cell):
  return ''.join(output.get('text', '') for output in cell.outputs)


def _replaced(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))
  return notebooks.read(path)


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.name)
def test_stored_notebooks_are_up_to_date(path, first_cell):
  stored = nbformat.read(path.with_suffix('.ipynb'), as_version=4)
  text = notebooks.read(path.with_suffix('.md'))
  assert not notebooks.find_faults(stored, text)
  code = [cell.source for cell in stored.cells if cell.cell_type == 'code']
  assert code[0] == first_cell


@pytest.mark.slow
@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.name)
def test_notebooks_run_in_colab(run_in_colab, path):
  stored = nbformat.read(path.with_suffix('.ipynb'), as_version=4)
  notebook = copy.deepcopy(stored)
  run_in_colab(notebook, path.parent, environment='')
  assert not notebooks.find_picture_faults(notebook, stored)


def test_a_right_notebook_runs_in_colab_and_here(run_in_colab, example):
  subprocess.run(
    [sys.executable, '-m', 'colab.notebooks', example],
    cwd=notebooks.FOLDER.parent,
    check=True,
  )
  stored = nbformat.read(example.with_suffix('.ipynb'), as_version=4)
  assert not notebooks.find_faults(stored, notebooks.read(example))
  assert [_text(cell) for cell in stored.cells[3:]] == ['slow\n', '']
  notebook = copy.deepcopy(stored)
  run_in_colab(notebook, example.parent, environment=sys.prefix)
  assert not notebooks.find_picture_faults(notebook, stored)
  assert [cell.source for cell in notebook.cells] == [
    cell.source for cell in stored.cells
  ]
  assert _text(notebook.cells[3]) == 'fast\n'
  assert _text(notebook.cells[4]) not in ('', '(3, 11)\n')

  # Then with faults, each of which is found.
  def faults_after(change):
    changed = copy.deepcopy(stored)
    change(changed)
    return notebooks.find_faults(changed, notebooks.read(example))

  def change_source(notebook):
    notebook.cells[3].source += '\n1 + 1'

  def change_outputs(notebook):
    notebook.cells[3].outputs.append(
      nbformat.v4.new_output('error', ename='E', evalue='', traceback=[])
    )

  def warn(notebook):
    notebook.cells[3].outputs.append(
      nbformat.v4.new_output('stream', name='stderr', text='WARNING')
    )

  def rerun(notebook):
    notebook.cells[3].execution_count = 7

  assert faults_after(change_source) == [
    'Its cells are not those of its text form.',
    'Its outputs are of other cells.',
  ]
  assert faults_after(change_outputs) == ['Code cell 2 failed.']
  assert faults_after(warn) == ['Code cell 2 shows warnings.']
  assert 'from top to bottom' in faults_after(rerun)[0]
  # As jupytext --sync leaves it.
  text = _replaced(example, "'slow'", "'slower'")
  changed = copy.deepcopy(stored)
  for cell, source in zip(changed.cells, text.cells, strict=True):
    cell.source = source.source
  assert notebooks.find_faults(changed, text) == [
    'Its outputs are of other cells.'
  ]
  # A picture that a run does not show.
  no_picture = copy.deepcopy(stored)
  no_picture.cells[3].outputs = []
  assert notebooks.find_picture_faults(no_picture, stored) == [
    'Cell 3 shows 0 of its pictures.'
  ]


def test_a_failing_cell_and_a_blank_picture_are_found(run_in_colab, example):
  notebook = _replaced(example, '[1, 2, 3]', '1 / 0')
  with pytest.raises(nbclient.exceptions.CellExecutionError, match='1 / 0'):
    run_in_colab(notebook, example.parent, environment=sys.prefix)
  notebook = _replaced(
    example, '1 / 0 if FAST else [3, 2, 1])', "[]); plt.axis('off')"
  )
  run_in_colab(notebook, example.parent, environment=sys.prefix)
  assert notebooks.find_picture_faults(notebook, notebook) == [
    'Cell 3 shows a blank picture.'
  ]


def test_a_notebook_without_parameters_is_an_error(example):
  notebook = _replaced(example, ' tags=["parameters"]', '')
  with pytest.raises(ValueError, match='0 cells have the tag'):
    notebooks.run(notebook, example.parent)
