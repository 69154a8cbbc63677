"""Lists the programs and the tasks: `python -m tasks`."""

from tasks import catalog

_PROGRAMS = {
  'train': 'trains one method on one task',
  'compare': 'compares methods, each with several seeds',
  'tune': 'chooses settings on validation examples',
  'evaluate': 'evaluates a run device by device',
  'personalize': "writes a device's personalized model",
  'benchmark': 'measures rounds against a bare loop and TFF',
}

# The files of those tasks whose data have another name.
_FILES = {
  'fashion_mnist_small': 'fashion_mnist',
  'emnist': 'emnist_all',
  'emnist_digits': 'emnist_all',
}


def main() -> None:
  """Prints both lists."""
  print('Programs; each has --help:\n')
  for name, does in _PROGRAMS.items():
    print(f'  python -m tasks.{name:12}{does}')
  print('\nTasks, for --task=NAME, with their default settings:\n')
  table = [
    ['', 'devices', 'examples a device', 'classes a device', 'weights']
    + ['minutes a round', 'data']
  ]
  for name, row in catalog.TASKS.items():
    defaults = catalog.defaults(name)
    devices = None if name == 'npz' else defaults['num_clients']
    each = row.examples and devices and round(row.examples / devices)
    held = defaults['classes_per_client']
    classes = (
      row.classes and f'{held} of {row.classes}' if held else row.classes
    )
    cells = [devices, each, classes, row.weights, row.minutes]
    texts = ['' if cell is None else str(cell) for cell in cells]
    table.append(
      [name, *texts, row.data.replace('NAME', _FILES.get(name, name))]
    )
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for line in table:
    padded = (c.ljust(w) for c, w in zip(line, widths, strict=True))
    print(f'  {"  ".join(padded)}'.rstrip())
  print(
    '\nBegin with: python -m tasks.train'
    '\nMinutes are those of two cores, where a run was measured.'
  )


if __name__ == '__main__':
  main()
