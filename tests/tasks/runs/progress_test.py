import io
import sys

from tasks.runs import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


def drawn(monkeypatch, file):
  """How many times a bar was drawn in a file, for 100 rounds at once."""
  monkeypatch.setattr(sys, 'stderr', file)
  with progress.progress(100, 'round', initial=10) as bar:
    for _ in range(90):
      bar.update()
  assert '100/100' in file.getvalue()
  return file.getvalue().count('\r')


def test_a_file_is_not_filled_with_progress(monkeypatch):
  assert drawn(monkeypatch, io.StringIO()) == 2


def test_in_a_terminal_it_is_one_line(monkeypatch):
  terminal = Terminal()
  drawn(monkeypatch, terminal)
  assert terminal.getvalue().count('\n') == 1
