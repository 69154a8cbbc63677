import io
import sys

from tasks.runs import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_in_a_file_the_progress_is_a_few_short_lines(monkeypatch):
  file = io.StringIO()
  monkeypatch.setattr(sys, 'stderr', file)
  with progress.progress(1000, 'round', initial=10) as bar:
    for i in range(990):
      bar.update()
      bar.set_postfix_str(f'accuracy {i}')
  lines = file.getvalue().split('\n')
  assert len(lines) == 3 and lines[-1] == ''
  assert lines[0].startswith('10/1000 rounds')
  assert lines[1].startswith('1000/1000 rounds')
  assert 'accuracy 98' in lines[1] and max(map(len, lines)) < 60
  assert '\r' not in file.getvalue()


def test_a_line_comes_when_its_time_has_come(monkeypatch):
  file = io.StringIO()
  monkeypatch.setattr(sys, 'stderr', file)
  monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', 0)
  with progress.progress(3, 'device') as bar:
    bar.update()
    bar.update()
    bar.update()
  found = [line.split()[0] for line in file.getvalue().strip().split('\n')]
  assert found == ['0/3', '1/3', '2/3', '3/3', '3/3']


def test_in_a_terminal_it_is_a_bar_on_one_line(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  with progress.progress(3, 'device') as bar:
    bar.update(3)
  assert '\r' in terminal.getvalue() and '3/3' in terminal.getvalue()
  assert terminal.getvalue().count('\n') == 1
