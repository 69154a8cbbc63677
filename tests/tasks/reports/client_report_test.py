import numpy as np
import pytest

from tasks.reports import client_report


@pytest.mark.parametrize('num_examples', [1, 7, 20, 60, 1000])
@pytest.mark.parametrize('lowest', [0.0, 0.4, 1.0])
def test_bins_hold_the_same_number_of_possible_accuracies(lowest, num_examples):
  lowest = round(lowest * num_examples) / num_examples
  possible = np.arange(num_examples + 1, dtype=np.float32) / num_examples
  possible = possible[possible >= lowest - 1e-6]
  edges = client_report._bins(possible, num_examples)
  assert len(edges) <= 26
  counts, _ = np.histogram(possible, edges)
  assert counts.sum() == len(possible)
  # Only the lowest bin can be cut short.
  assert len(set(counts[1:])) <= 1 and counts[0] <= max(counts)
  distances = np.abs(edges[:, np.newaxis] - possible)
  assert distances.min() == pytest.approx(0.5 / num_examples, rel=1e-2)
