import numpy as np
import pytest
from sklearn import datasets

from tasks.catalog import digits
from tasks.runs import methods
from tasks.runs import settings as settings_lib


def test_all_digits_are_split_once_in_equal_shares():
  loaded = digits.load()
  (train_x, train_y), (test_x, test_y) = loaded.train, loaded.test
  assert train_x.shape == (1198, 8, 8) and test_x.shape == (599, 8, 8)
  assert train_x.dtype == test_x.dtype == np.float32
  assert train_y.dtype == test_y.dtype == np.int32
  assert train_x.min() == 0 and train_x.max() == 16
  bunch = datasets.load_digits()

  def as_multiset(x, y):
    rows = np.concatenate([x.reshape(len(y), -1), y[:, None]], axis=1)
    return sorted(map(tuple, rows.tolist()))

  assert as_multiset(
    np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y])
  ) == as_multiset(bunch.images, bunch.target)
  shares = np.bincount(test_y) / np.bincount(bunch.target)
  np.testing.assert_allclose(shares, 1 / 3, atol=0.01)


def test_loads_the_same_every_time():
  first, again = digits.load(), digits.load(None, 'digits')
  for one, other in zip(
    first.train + first.test, again.train + again.test, strict=True
  ):
    assert np.array_equal(one, other)


def test_network_and_augmentation():
  loaded = digits.load()
  assert loaded.augment is None
  assert loaded.num_classes == 10
  x = loaded.train[0][:5]
  model = loaded.build_model(3)
  assert model(x).shape == (5, 3)
  np.testing.assert_array_equal(model.get_layer('scaling')(x), x / 16)


@pytest.mark.parametrize('method', methods.METHODS)
def test_defaults_complete_the_settings(method):
  personalizes = methods.METHODS[method].personalizes
  settings = settings_lib.resolve(
    method=method, personalization='maml' if personalizes else 'none'
  )
  unset = {k for k, v in vars(settings).items() if v is None}
  without_effect = {'concentration'}
  if not personalizes:
    without_effect |= {'maml_first_order', 'maml_learning_rate', 'maml_steps'}
  if not method.endswith('dyn'):
    without_effect.add('alpha')
  if method != 'fed_prox':
    without_effect.add('mu')
  assert unset == {
    *('data_dir', 'network', 'tested_personalization'),
    *without_effect,
  }
