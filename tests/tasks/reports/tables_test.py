import csv

import numpy as np

from tasks.reports import tables


def test_the_columns_of_a_table_are_aligned():
  table = tables.to_markdown(
    [{'name': 'a', 'x': '1'}, {'name': 'longer', 'x': '1000'}]
  )
  assert table.split('\n') == [
    '| name   |    x |',
    '| ------ | ---: |',
    '| a      |    1 |',
    '| longer | 1000 |',
  ]


def test_missing_values_are_empty_and_float32_is_not_lost(tmp_path):
  value = np.nextafter(np.float32(0.9), np.float32(1))
  row = {'a': float(value), 'b': float('nan'), 'c': None, 'd': True, 'e': 'x,'}
  tables.write_csv([row, row | {'a': np.float64(2)}], str(tmp_path / 'a.csv'))
  with open(tmp_path / 'a.csv', newline='') as file:
    first, second = csv.DictReader(file)
  assert abs(np.float32(first.pop('a')) - value) < 1e-7
  assert first == {'b': '', 'c': '', 'd': 'True', 'e': 'x,'}
  assert second['a'] == '2'
