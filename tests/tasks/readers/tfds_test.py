import io
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tasks.readers import files
from tasks.readers import tfds as tfds_lib


@pytest.fixture
def server(monkeypatch):
  """Does what its `answer` says when it is asked, and keeps the questions."""

  def urlopen(request, timeout):
    urlopen.asked.append((request.get_method(), request.full_url))
    return urlopen.answer()

  urlopen.asked, urlopen.answer = [], lambda: io.BytesIO()
  monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
  return urlopen


def refuse():
  raise urllib.error.HTTPError('url', 405, 'not allowed', {}, None)


def fail():
  raise urllib.error.URLError('no network here')


@pytest.mark.parametrize('answer', [io.BytesIO, refuse])
def test_loads_both_sets(server, answer):
  server.answer = answer
  with tfds.testing.mock_data(num_examples=7):
    sets = tfds_lib.load('cifar100', 'Get it.')
    expected = tfds.load('cifar100', split=['train', 'test'])
  for (x, y), dataset in zip(sets, expected, strict=True):
    examples = list(dataset.as_numpy_iterator())
    assert np.array_equal(x, [example['image'] for example in examples])
    assert np.array_equal(y, [example['label'] for example in examples])
    assert x.dtype == np.uint8
  ((method, url),) = server.asked
  assert method == 'HEAD' and url.endswith('cifar-100-binary.tar.gz')


def test_without_network_it_says_so_and_what_to_do(server):
  server.answer = fail
  with pytest.raises(files.DataError, match='provide cifar10 .*no netw') as e:
    tfds_lib.load('cifar10', 'Get it.')
  assert str(e.value).endswith('Get it.')
  assert len(server.asked) == 1


def test_an_unknown_name_is_an_error(server):
  with pytest.raises(files.DataError, match='could not provide cifar11'):
    tfds_lib.load('cifar11', 'Get it.')
