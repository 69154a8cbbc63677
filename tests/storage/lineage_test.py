import numpy as np
import tensorflow as tf

from tff_debias import storage as storage_lib
from tff_debias.storage import lineage as lineage_lib


def started(number):
  """The run numbers of a graph that is run some times, under a seed."""
  tf.keras.utils.set_random_seed(1)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    tf.compat.v1.set_random_seed(1)
    run = storage_lib.start_lineage().run
    return [int(session.run(run)) for _ in range(number)]


def test_every_run_has_a_number_of_its_own():
  numbers = started(20) + started(20)
  assert len(set(numbers)) == 40
  assert min(numbers) > 0
  # Of 62 bits: small ones would meet by chance.
  assert max(numbers).bit_length() > 55


def test_a_new_run_has_no_rounds_and_no_clients():
  lineage = storage_lib.start_lineage()
  assert lineage.windows.shape == (0, 2)
  assert (lineage.num_clients, lineage.digest) == (0, 0)


def test_tokens_grow_with_time():
  tokens = []
  for _ in range(50):
    tokens.append(int(lineage_lib.new_token()))
    # Longer than a microsecond.
    np.linalg.norm(np.ones([100, 100]))
  assert tokens == sorted(set(tokens))
  assert len(str(tokens[0])) == 19


def test_states_belong_by_round_and_window():
  lineage = storage_lib.Lineage(
    tf.constant(1, tf.int64),
    tf.constant([[10, 20], [1, 0], [30, 30]], tf.int64),
    tf.constant(2),
    tf.constant(0, tf.int64),
  )
  expected = {
    (1, 9): False,
    (1, 10): True,
    (1, 15): True,
    (1, 20): True,
    (1, 21): False,
    (1, 30): False,
    (2, 1): False,
    (2, 15): False,
    (3, 15): False,
    (3, 30): True,
    (4, 30): False,
    (0, 15): False,
    (999_999_999, 15): False,
  }
  rounds, tokens = zip(*expected, strict=True)
  found = lineage_lib.belongs(
    lineage, tf.constant(rounds), tf.constant(tokens, tf.int64)
  )
  np.testing.assert_array_equal(found, list(expected.values()))
  # A run without rounds has no states.
  new = lineage._replace(windows=tf.zeros([0, 2], tf.int64))
  found = lineage_lib.belongs(
    new, tf.constant([0, 1]), tf.constant([15, 15], tf.int64)
  )
  assert not np.any(found)


def test_receipts_add_up_to_the_digest():
  zero, old, new = (
    tf.constant(token, tf.int64) for token in (0, 2**40 + 7, 2**41 + 11)
  )
  receipts = [
    storage_lib.receipt(zero, old),
    storage_lib.receipt(old, new),
    storage_lib.receipt(new, zero),
  ]
  assert [int(receipt.is_new) for receipt in receipts] == [1, 0, 0]
  assert [int(receipt.fingerprint) for receipt in receipts] == [7, 11, 0]
  assert [int(receipt.change) for receipt in receipts] == [7, 4, 0]
