import dataclasses
import hashlib
import io
import tarfile

import numpy as np
import pytest

from tasks.catalog import cifar10
from tasks.catalog import cifar100
from tasks.readers import cifar
from tasks.readers import files
from tasks.readers import tfds as tfds_lib
from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib

_FILES = {
  cifar10: {
    **{f'data_batch_{i}.bin': 40 for i in range(1, 6)},
    'test_batch.bin': 50,
  },
  cifar100: {'train.bin': 400, 'test.bin': 200},
}
"""The records of the files here."""


@pytest.fixture(params=[cifar10, cifar100], ids=['cifar10', 'cifar100'])
def module(request, monkeypatch):
  """The two tasks, for smaller files of the true format."""
  sizes = _FILES[request.param]
  variant = request.param._VARIANT
  # The true ones: 60,000 images in all.
  published = variant.train | variant.test
  assert list(published) == list(sizes) and sum(published.values()) == 60_000
  monkeypatch.setattr(
    request.param,
    '_VARIANT',
    dataclasses.replace(
      variant,
      train={name: sizes[name] for name in variant.train},
      test={name: sizes[name] for name in variant.test},
    ),
  )
  return request.param


@pytest.fixture
def examples(module):
  """Images and fine labels of each file."""
  rng = np.random.default_rng(0)
  num_classes = module._VARIANT.num_classes
  return {
    name: (
      rng.integers(0, 256, (size, 32, 32, 3)).astype(np.uint8),
      rng.permutation(size) % num_classes,
    )
    for name, size in _FILES[module].items()
  }


@pytest.fixture
def contents(module, examples):
  """The bytes of each file, by the definition on the data set's page."""

  def record(image, label):
    labels = [label] if module is cifar10 else [label // 5, label]
    colors = [image[..., color].tobytes() for color in range(3)]
    return bytes(labels) + b''.join(colors)

  return {
    name: b''.join(record(*example) for example in zip(x, y, strict=True))
    for name, (x, y) in examples.items()
  }


def write(folder, contents):
  folder.mkdir(exist_ok=True)
  for name, content in contents.items():
    (folder / name).write_bytes(content)


def write_archive(path, folder, contents):
  with tarfile.open(path, 'w:gz') as tar:
    for name, content in contents.items():
      member = tarfile.TarInfo(f'{folder}/{name}')
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


def check(loaded, examples):
  *train, test = examples.values()
  train = [np.concatenate(arrays) for arrays in zip(*train, strict=True)]
  raw = train[0] / 255
  mean, deviation = raw.mean((0, 1, 2)), raw.std((0, 1, 2))
  for (x, y), (true_x, true_y) in ((loaded.train, train), (loaded.test, test)):
    assert x.dtype == np.uint8 and y.dtype == np.int32
    assert np.array_equal(x, true_x)
    expected = (true_x / 255 - mean) / deviation
    scaled = loaded.build_model(10).get_layer('scaling')(x)
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(y, true_y)


def test_loads_the_folder_the_files_and_the_archive(
  module, examples, contents, tmp_path
):
  variant = module._VARIANT
  write(tmp_path / variant.folder, contents)
  check(module.load(str(tmp_path)), examples)
  check(module.load(str(tmp_path / variant.folder)), examples)
  packed = tmp_path / 'packed'
  packed.mkdir()
  write_archive(packed / variant.archive, variant.folder, contents)
  check(module.load(str(packed)), examples)


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda content: content[:-1], 'is truncated: for .* it must have'),
    (lambda content: content[:0], 'bytes, got 0'),
    (lambda content: content + content, 'is too long: for .* it must have'),
    (lambda content: b'\xfa\xfa' + content[2:], 'got 250 in record 0'),
  ],
)
@pytest.mark.parametrize('is_packed', [False, True])
def test_a_damaged_file_is_named(
  module, contents, tmp_path, change, said, is_packed
):
  name, content = list(contents.items())[-1]
  contents[name] = change(content)
  variant = module._VARIANT
  if is_packed:
    write_archive(tmp_path / variant.archive, variant.folder, contents)
  else:
    write(tmp_path, contents)
  with pytest.raises(files.DataError, match=said) as e:
    module.load(str(tmp_path))
  assert name in str(e.value) and str(tmp_path) in str(e.value)


def test_a_truncated_archive_is_named(module, contents, tmp_path):
  variant = module._VARIANT
  path = tmp_path / variant.archive
  write_archive(path, variant.folder, contents)
  whole = path.read_bytes()
  middle = len(whole) // 2
  other_byte = bytes([whole[middle] ^ 1])
  damaged = [
    b'<!DOCTYPE html>',
    whole[:middle] + other_byte + whole[middle + 1 :],
  ]
  for end in (5, middle, len(whole) - 10):
    damaged.append(whole[:end])
  for content in damaged:
    path.write_bytes(content)
    with pytest.raises(
      files.DataError, match=f'{path} is truncated or damaged'
    ):
      module.load(str(tmp_path))
  write_archive(path, 'other', contents)
  with pytest.raises(files.DataError, match=f'{path} is another archive'):
    module.load(str(tmp_path))


@pytest.mark.parametrize(
  'kind', [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]
)
def test_what_is_no_file_in_an_archive_is_named(
  module, contents, tmp_path, kind
):
  variant = module._VARIANT
  name, *others = contents
  path = tmp_path / variant.archive
  with tarfile.open(path, 'w:gz') as tar:
    for other in others:
      member = tarfile.TarInfo(f'{variant.folder}/{other}')
      member.size = len(contents[other])
      tar.addfile(member, io.BytesIO(contents[other]))
    member = tarfile.TarInfo(f'{variant.folder}/{name}')
    member.type, member.linkname = kind, name
    tar.addfile(member)
  with pytest.raises(files.DataError, match=f'{name} in .* is not a file'):
    module.load(str(tmp_path))


def test_says_which_data_are_not_known_to_be_published(
  module, contents, tmp_path, caplog, monkeypatch
):
  variant = module._VARIANT
  path = tmp_path / variant.archive
  write_archive(path, variant.folder, contents)
  module.load(str(tmp_path))
  said = f'{path} is not the published file of {variant.title}.'
  assert caplog.messages == [said]
  md5 = hashlib.md5(path.read_bytes()).hexdigest()
  monkeypatch.setattr(module, '_VARIANT', dataclasses.replace(variant, md5=md5))
  module.load(str(tmp_path))
  assert caplog.messages == [said]
  write(tmp_path / 'unpacked', contents)
  module.load(str(tmp_path / 'unpacked'))
  (_, last) = caplog.messages
  assert f'{tmp_path / "unpacked"} may or may not be the published' in last


def test_missing_files_say_how_to_get_them(module, contents, tmp_path):
  variant = module._VARIANT
  with pytest.raises(files.DataError, match='There is neither') as e:
    module.load(str(tmp_path))
  for part in (variant.archive, variant.folder, str(tmp_path), '~kriz'):
    assert part in str(e.value)
  name, _ = contents.popitem()
  write(tmp_path, contents)
  with pytest.raises(files.DataError, match=f'but not {name}'):
    module.load(str(tmp_path))


def test_loads_from_tensorflow_datasets(module, monkeypatch):
  # Slow to import, for this test only.
  import tensorflow_datasets as tfds

  monkeypatch.setattr(tfds_lib, '_check_server', lambda url: None)
  with tfds.testing.mock_data(num_examples=15):
    loaded = module.load()
    sets = tfds.load(module._VARIANT.tfds_name, split=['train', 'test'])
    sets = [list(dataset.as_numpy_iterator()) for dataset in sets]
  check(
    loaded,
    {
      split: (
        np.array([example['image'] for example in examples]),
        np.array([example['label'] for example in examples]),
      )
      for split, examples in zip(('train', 'test'), sets, strict=True)
    },
  )


@pytest.mark.parametrize('partition', ['acid', 'alid'])
def test_is_the_published_experiment(
  module, examples, contents, tmp_path, partition
):
  write(tmp_path, contents)
  # All but the number of devices, for which there are too few examples here.
  experiment = experiment_lib.Experiment(
    settings_lib.Settings(
      task=module.__name__.split('.')[-1],
      partition=partition,
      data_dir=str(tmp_path),
      num_clients=100 if module is cifar100 else 10,
    )
  )
  classes = experiment.settings.classes_per_client
  assert classes == (5 if module is cifar10 else 20)
  num_classes = module._VARIANT.num_classes
  outputs = num_classes if partition == 'acid' else classes
  assert experiment.build_keras_model().count_params() == (
    797_962 + 193 * (outputs - 10)
  )
  assert experiment_lib.default_rounds(experiment.settings) == 1000
  held = set()
  for batch in experiment.client_data('client_0003')['train']:
    held.update(batch['y'].numpy().tolist())
    assert batch['x'].shape[1:] == (32, 32, 3)
  if partition == 'acid':
    assert held <= {(3 + i) % num_classes for i in range(classes)}
  else:
    assert held <= set(range(classes))
  participant = experiment.training_data(1)[0]['data']
  assert len(list(participant)) == 2 * 50
  assert participant.element_spec['x'].shape == (50, 32, 32, 3)


def test_variants_are_as_published():
  assert cifar10._VARIANT.train.keys() == {
    f'data_batch_{i}.bin' for i in (1, 2, 3, 4, 5)
  }
  assert set(cifar10._VARIANT.train.values()) == {10_000}
  assert cifar100._VARIANT.train == {'train.bin': 50_000}
  for module in (cifar10, cifar100):
    assert list(module._VARIANT.test.values()) == [10_000]
    assert isinstance(module._VARIANT, cifar.Variant)
