import hashlib

import numpy as np
import pytest

from tasks import catalog
from tasks.catalog import published
from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib


@pytest.fixture(scope='module')
def arrays():
  """As many images and labels as in Fashion-MNIST, each image another."""
  rng = np.random.default_rng(0)
  made = {}
  for split, size in (('train', 60_000), ('test', 10_000)):
    x = np.zeros((size, 28, 28), np.uint8)
    x[:, 12:14, 12:14] = (
      np.arange(size, dtype='<u4').view(np.uint8).reshape(size, 2, 2)
    )
    made |= {f'x_{split}': x, f'y_{split}': rng.permutation(size) % 10}
  return made


@pytest.fixture(scope='module')
def folder(arrays, tmp_path_factory):
  path = tmp_path_factory.mktemp('data')
  np.savez(path / 'fashion_mnist.npz', **arrays)
  return str(path)


def scaled(loaded, x):
  return loaded.build_model(10).get_layer('scaling')(x).numpy()


def test_images_are_normalized_by_the_training_set(folder, arrays):
  loaded = catalog.load('fashion_mnist', folder)
  raw = arrays['x_train'] / np.float32(255)
  for (x, y), split in ((loaded.train, 'train'), (loaded.test, 'test')):
    np.testing.assert_array_equal(y, arrays[f'y_{split}'])
    expected = (arrays[f'x_{split}'][-50:] / 255 - raw.mean()) / raw.std()
    np.testing.assert_allclose(
      scaled(loaded, x[-50:])[..., 0], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
  'partition, expected',
  [('acid', '83b2709623bee212'), ('alid', '96faafa51993e96a')],
)
def test_devices_have_the_very_examples_of_the_stored_results(
  folder, partition, expected
):
  """Also their order and their augmentation, in a round of the defaults."""
  experiment = experiment_lib.Experiment(
    settings_lib.resolve(
      task='fashion_mnist',
      method='pfl_dyn',
      partition=partition,
      data_dir=folder,
    )
  )
  digest = hashlib.sha256()
  for participant in experiment.training_data(3):
    for batch in participant['data'].as_numpy_iterator():
      digest.update(batch['x'].tobytes() + batch['y'].tobytes())
  assert digest.hexdigest().startswith(expected)


def test_the_small_task_has_the_mean_of_2_by_2_pixels(folder):
  full = catalog.load('fashion_mnist', folder)
  small = catalog.load('fashion_mnist_small', folder)
  for (x, y), (small_x, small_y) in (
    (full.train, small.train),
    (full.test, small.test),
  ):
    assert small_x.shape == (len(x), 14, 14, 1) and small_x.dtype == np.float32
    pixels = x[-1, 12:14, 12:14]
    assert small_x[-1, 6, 6] == pixels.mean(axis=(0, 1)) > 0
    np.testing.assert_allclose(
      scaled(small, small_x[-1:])[0, 6, 6],
      scaled(full, pixels[None]).mean(axis=(0, 1, 2)),
      rtol=1e-5,
    )
    np.testing.assert_array_equal(small_y, y)
  model = small.build_model(10)
  assert model.count_params() == 34_122
  # The published initial weights: Keras' biases are 0.
  assert all(weights.all() for weights in model.get_weights())
  assert small.augment is None


@pytest.mark.parametrize(
  'name, num_classes, classes_per_client',
  [('cifar10', 10, 5), ('cifar100', 100, 20)],
)
def test_cifar_is_the_published_experiment(
  tmp_path, name, num_classes, classes_per_client
):
  rng = np.random.default_rng(0)
  # An example of each class for every device that holds the class.
  y = np.arange(50 * classes_per_client * 2)[:, None] % num_classes
  x = rng.integers(0, 256, (len(y), 32, 32, 3), np.uint8)
  np.savez(tmp_path / f'{name}.npz', x_train=x, y_train=y, x_test=x, y_test=y)
  # All but the number of devices, for which there are too few examples here.
  experiment = experiment_lib.Experiment(
    settings_lib.resolve(
      task=name, data_dir=str(tmp_path), num_clients=num_classes
    )
  )
  assert experiment.settings.classes_per_client == classes_per_client
  num_weights = experiment.build_keras_model().count_params()
  assert num_weights == 797_962 + 193 * (num_classes - 10)
  assert experiment.settings.defaults()['rounds'] == 1000
  data = experiment.client_data('client_0003')['train']
  labels = data.get_single_element()['y'].numpy()
  held = {(3 + i) % num_classes for i in range(classes_per_client)}
  assert set(labels.tolist()) <= held
  participant = experiment.training_data(1)[0]['data']
  assert len(list(participant)) == 2 * 50
  assert participant.element_spec['x'].shape == (50, 32, 32, 3)


def test_mini_imagenet_is_the_published_experiment(tmp_path):
  # An example of each class for each of its 20 devices.
  y = np.arange(2000) % 100
  x = np.random.default_rng(0).integers(0, 256, (2000, 84, 84, 3), np.uint8)
  np.savez(
    tmp_path / 'mini_imagenet.npz', x_train=x, y_train=y, x_test=x, y_test=y
  )
  experiment = experiment_lib.Experiment(
    settings_lib.resolve(
      task='mini_imagenet',
      partition='alid',
      data_dir=str(tmp_path),
      batch_size=4,
      local_steps=3,
    )
  )
  assert experiment.settings.classes_per_client == 20
  # The last layer has an output for each class of a client, not 100.
  num_weights = experiment.build_keras_model().count_params()
  assert num_weights == 1_514_792 - 80 * 101
  batch = next(iter(experiment.training_data(1)[0]['data']))['x']
  assert batch.shape == (4, 84, 84, 3) and batch.dtype == np.uint8


def test_its_images_are_cropped_and_mirrored_and_then_change_their_color():
  x = np.full((3, 84, 84, 3), [90, 130, 200], np.uint8)
  result = published.augment_mini_imagenet(x, [1, 2]).numpy()
  assert not np.array_equal(result, published.augment_mini_imagenet(x, [1, 3]))
  for image in result:
    # Black from the padding; contrast may lift it to gray.
    colors = np.unique(image.reshape(-1, 3), axis=0)
    assert len(colors) == 2
    is_padding = (image == colors[0]).all(axis=-1)
    for axis in (0, 1):
      assert 0 <= is_padding.all(axis=1 - axis).sum() <= 8


# The steps s and their size a of MAML, and α, as published for each method.
@pytest.mark.parametrize(
  'method, personalization, maml_steps, maml_learning_rate, alpha',
  [
    ('fed_dyn', 'none', None, None, 0.01),
    ('per_fed_avg', 'maml', 5, 0.01, None),
    ('pfl_dyn', 'maml', 5, 0.01, 0.01),
    ('pfl_dyn', 'proto', None, None, 0.1),
    ('pfl_scaf', 'maml', 1, 0.1, None),
    ('scaffold', 'none', None, None, None),
  ],
)
def test_defaults_depend_on_the_method(
  method, personalization, maml_steps, maml_learning_rate, alpha
):
  settings = settings_lib.resolve(
    task='cifar10', method=method, personalization=personalization
  )
  assert settings.maml_steps == maml_steps
  assert settings.maml_learning_rate == maml_learning_rate
  assert settings.alpha == alpha
  assert (settings.num_clients, settings.clients_per_round) == (100, 10)
  assert (settings.local_steps, settings.batch_size) == (50, 50)
  assert (settings.learning_rate, settings.weight_decay) == (0.1, 1e-3)
  assert settings.learning_rate_decay == 0.997
  bound = np.inf if personalization == 'none' else 10
  assert settings.max_grad_norm == bound


def test_what_is_given_is_no_default():
  settings = settings_lib.resolve(
    task='cifar10',
    method='pfl_scaf',
    personalization='maml',
    maml_steps=3,
  )
  assert (settings.maml_steps, settings.maml_learning_rate) == (3, 0.1)
