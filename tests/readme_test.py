import pathlib
import re

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
