"""Draws the figures of stored comparisons again, from their `curves.csv`.

uv run python -m colab.redraw
"""

import collections
import csv
import pathlib

import numpy as np

from tasks.reports import figures
from tasks.reports import savings

_RESULTS = pathlib.Path(__file__).parent / 'results'
# By folder: the title, the targets, the number of tests in a mean, and the
# accuracy of each device alone.
_FIGURES = {
  'cifar10': (
    'CIFAR-10, JPEG copy: ACID, 5 classes a device, 10 of 100 devices a round',
    {'proto': (0.75, 0.8, 0.84)},
    3,
    None,
  ),
  'digits': (
    'Digits: ALID, 5 classes a device, 10 of 100 devices a round',
    {'maml': (0.9,)},
    1,
    0.809,
  ),
}


def read(path: pathlib.Path, smoothing: int) -> list[savings.Curve]:
  """Returns the curves of all runs in a `curves.csv`."""
  runs = collections.defaultdict(list)
  with open(path, newline='') as file:
    for row in csv.DictReader(file):
      name = row['method'], row['personalization'], int(row['seed'])
      runs[name].append(
        [float(row[k]) for k in ('round', 'models', 'accuracy')]
      )
  return [
    savings.Curve(*name, *np.array(tests).T, smoothing)
    for name, tests in runs.items()
  ]


if __name__ == '__main__':
  for folder, (title, targets, smoothing, alone) in _FIGURES.items():
    curves = read(_RESULTS / folder / 'curves.csv', smoothing)
    curves = [curve for curve in curves if curve.personalization in targets]
    path = str(_RESULTS / folder / 'comparison.png')
    figures.save_comparison(curves, targets, title, path, alone)
