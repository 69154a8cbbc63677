import pickle

import numpy as np
import pytest

from tasks.catalog import mini_imagenet
from tasks.readers import files
from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib

_PARTS = {'train': range(64), 'val': range(64, 80), 'test': range(80, 100)}
_SIZE, _TRAIN_SIZE = 6, 5


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
  """Files of the true format with 6 images of a class, 5 for training."""
  assert mini_imagenet._IMAGES_PER_CLASS == 600
  assert mini_imagenet._TRAIN_IMAGES_PER_CLASS == 500
  monkeypatch.setattr(mini_imagenet, '_IMAGES_PER_CLASS', _SIZE)
  monkeypatch.setattr(mini_imagenet, '_TRAIN_IMAGES_PER_CLASS', _TRAIN_SIZE)


def image(label, number):
  """An image that tells whose it is, in corners that differ."""
  x = np.full((84, 84, 3), 50, np.uint8)
  x[:20], x[20:, :9], x[50:, 50:] = label, number, [255, 20, 0]
  return x


def authors_contents():
  rng = np.random.default_rng(0)
  contents = {}
  for part, classes in _PARTS.items():
    labels = rng.permutation(np.repeat(classes, _SIZE))
    part = 'train_phase_train' if part == 'train' else part
    seen = dict.fromkeys(classes, 0)
    data = []
    for label in labels:
      data.append(image(label, seen[label]))
      seen[label] += 1
    contents[f'miniImageNet_category_split_{part}.pickle'] = {
      'data': np.array(data),
      'labels': labels.tolist(),
      'catname2label': {f'n{label}': label for label in classes},
    }
  return contents


def cache_contents():
  contents = {}
  for part, classes in _PARTS.items():
    # Names in the order of the classes, and a dict in another order.
    contents[f'mini-imagenet-cache-{part}.pkl'] = {
      'image_data': np.array(
        [image(label, i) for label in classes for i in range(_SIZE)]
      ),
      'class_dict': {
        f'n{label:08d}': [
          (label - classes[0]) * _SIZE + i for i in range(_SIZE)
        ]
        for label in reversed(classes)
      },
    }
  return contents


def write(folder, contents):
  for name, content in contents.items():
    (folder / name).write_bytes(pickle.dumps(content, 2))


@pytest.mark.parametrize('contents', [authors_contents, cache_contents])
def test_every_image_is_there_once(tmp_path, contents):
  write(tmp_path, contents())
  loaded = mini_imagenet.load(str(tmp_path))
  found = []
  for x, y, size in (
    (*loaded.train, _TRAIN_SIZE),
    (*loaded.test, _SIZE - _TRAIN_SIZE),
  ):
    assert x.dtype == np.uint8 and x.shape == (100 * size, 84, 84, 3)
    assert y.dtype == np.int32
    assert np.array_equal(x[:, 0, 0, 0], y)
    assert np.bincount(y).tolist() == [size] * 100
    found += zip(y.tolist(), x[:, 30, 0, 0].tolist(), strict=True)
  assert sorted(found) == [(c, i) for c in range(100) for i in range(_SIZE)]
  # Which image is for the test is drawn.
  assert len(set(loaded.test[0][:, 30, 0, 0])) == _SIZE
  again = mini_imagenet.load(str(tmp_path))
  assert np.array_equal(loaded.train[0], again.train[0])


@pytest.mark.parametrize('partition', ['acid', 'alid'])
def test_is_the_published_experiment(tmp_path, partition):
  write(tmp_path, authors_contents())
  experiment = experiment_lib.Experiment(
    settings_lib.Settings(
      task='mini_imagenet',
      partition=partition,
      data_dir=str(tmp_path),
      batch_size=4,
      local_steps=3,
    )
  )
  s = experiment.settings
  assert (s.num_clients, s.classes_per_client, s.alpha) == (100, 20, 0.1)
  outputs = 100 if partition == 'acid' else 20
  # As the authors' layers: 3 convolutions, 64·7·7 → 400 → 100 → outputs.
  weights = (5 * 5 * 3 + 1) * 64 + 2 * (5 * 5 * 64 + 1) * 64
  weights += 3137 * 400 + 401 * 100 + 101 * outputs
  assert experiment.build_keras_model().count_params() == weights
  assert experiment.model.input_spec['x'].dtype == np.uint8

  raw = experiment.task.train[0]
  scaled = experiment.build_keras_model().get_layer('scaling')(raw)
  scaled = scaled.numpy().astype(float)
  np.testing.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=1e-3)
  np.testing.assert_allclose(scaled.std((0, 1, 2)), 1, atol=1e-3)
  device = experiment.client_data('client_0090')['train'].get_single_element()
  labels = device['x'][:, 0, 0, 0].numpy()
  assert set(labels) <= {(90 + i) % 100 for i in range(20)}
  if partition == 'acid':
    assert np.array_equal(labels, device['y'])
  else:
    assert set(device['y'].numpy()) <= set(range(20))
  expected = np.array([image(label, 0) for label in labels])
  np.testing.assert_array_equal(device['x'][:, :20], expected[:, :20])

  batch = next(iter(experiment.training_data(1)[0]['data']))['x']
  assert batch.shape == (4, 84, 84, 3) and batch.dtype == np.uint8


@pytest.mark.parametrize(
  'damage, said',
  [
    (lambda c: c['labels'].pop(), '2399 labels|95 labels'),
    (lambda c: c['labels'].__setitem__(0, 99), 'images of class'),
    (lambda c: c.update(data=c['data'][1:]), '95 images and 96 labels'),
    (
      lambda c: c.update(data=c['data'][:, :80]),
      r'got uint8 \[96, 80, 84, 3\]',
    ),
    (lambda c: c.update(data=c['data'] / 255), 'got float64'),
    (lambda c: c.update(data=[1, 2]), 'got list'),
    (lambda c: c.pop('data'), "KeyError: 'data'"),
    (lambda c: c.update(labels='mine'), 'ValueError'),
    (lambda c: c.update(class_dict={}), "KeyError: 'image_data'"),
  ],
)
def test_a_wrong_file_is_named(tmp_path, damage, said):
  contents = authors_contents()
  name = 'miniImageNet_category_split_val.pickle'
  damage(contents[name])
  write(tmp_path, contents)
  with pytest.raises(files.DataError, match=said) as e:
    mini_imagenet.load(str(tmp_path))
  assert name in str(e.value)


@pytest.mark.parametrize(
  'damage, said',
  [
    (lambda c: c['class_dict']['n00000070'].append(99), 'IndexError'),
    (lambda c: c['class_dict'].pop('n00000079'), 'images of class'),
    (lambda c: c['class_dict']['n00000070'].pop(), 'images of class'),
  ],
)
def test_a_wrong_cache_is_named(tmp_path, damage, said):
  contents = cache_contents()
  damage(contents['mini-imagenet-cache-val.pkl'])
  write(tmp_path, contents)
  with pytest.raises(files.DataError, match=said) as e:
    mini_imagenet.load(str(tmp_path))
  assert 'mini-imagenet-cache-val.pkl' in str(e.value)


@pytest.mark.parametrize('key', ['class_dict', 'image_data'])
def test_deeply_nested_lists_are_an_error(tmp_path, key):
  contents = cache_contents()
  name = 'mini-imagenet-cache-val.pkl'
  contents[name][key] = ['left', 'port']
  write(tmp_path, contents)
  # pickle can read such lists, but cannot write them.
  content = (tmp_path / name).read_bytes()
  for word in (b'left', b'port'):
    content = content.replace(
      b'X\4\0\0\0' + word, b']' * 10**5 + b'a' * (10**5 - 1)
    )
  (tmp_path / name).write_bytes(content)
  with pytest.raises(files.DataError, match=name):
    mini_imagenet.load(str(tmp_path))


def test_a_truncated_file_is_named(tmp_path):
  write(tmp_path, cache_contents())
  path = tmp_path / 'mini-imagenet-cache-test.pkl'
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(files.DataError, match=f'{path} is .* truncated'):
    mini_imagenet.load(str(tmp_path))


def test_missing_files_say_how_to_get_them(tmp_path):
  for folder, said in ((None, 'not given'), (str(tmp_path), str(tmp_path))):
    with pytest.raises(files.DataError, match=said) as e:
      mini_imagenet.load(folder)
    for part in ('data_dir', 'train_phase_train.pickle', 'cache-train.pkl'):
      assert part in str(e.value)
  contents = cache_contents()
  contents.pop('mini-imagenet-cache-val.pkl')
  write(tmp_path, contents)
  with pytest.raises(files.DataError, match='there is no .*cache-val.pkl'):
    mini_imagenet.load(str(tmp_path))
