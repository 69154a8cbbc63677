import os
import pickle

import numpy as np
import pytest
from sklearn import datasets
import tensorflow as tf

from tasks import catalog
from tasks.runs import errors
from tasks.runs import training
from tests.tasks import small_runs
from tff_debias import evaluation
from tff_debias import export


def personalize(*flags):
  small_runs.prepare('personalize', *flags)()


@pytest.mark.slow
def test_a_device_of_the_run(copy_run, runtime, capsys):
  run = copy_run('proto')
  personalize(f'--run={run.path}', '--client=client_0003')
  folder = os.path.join(run.path, 'personalized', 'client_0003')
  assert sorted(os.listdir(folder)) == [
    'model.keras',
    'model.tflite',
    'saved_model',
  ]
  # TFF's own test of the device, and the file on the raw images.
  experiment = small_runs.experiment(**small_runs.OPTIONS['proto'])
  data = experiment.client_data('client_0003')
  weights, _ = training.load(experiment, run)
  right = evaluation.build_client_evaluation(
    experiment.model, experiment.personalization
  )(weights, [data])[0]
  (batch,) = data['test'].as_numpy_iterator()
  model = tf.keras.models.load_model(f'{folder}/model.keras')
  found = model.predict(batch['x'], verbose=0).argmax(axis=1)
  accuracy = np.mean(found == batch['y'])
  np.testing.assert_allclose(accuracy, right['accuracy'], atol=1e-6)
  assert f'{accuracy:.4f} personalized' in capsys.readouterr().out


@pytest.mark.slow
def test_the_examples_of_another_device(runs, tmp_path, capsys):
  file = tmp_path / 'mine.npz'
  bunch = datasets.load_digits()
  chosen = np.flatnonzero(np.isin(bunch.target, (2, 5)))[:40]
  x, y = bunch.images[chosen], bunch.target[chosen]
  np.savez(file, x=x.astype(np.uint8), y=y)
  output = tmp_path / 'here'
  personalize(
    f'--run={runs["proto"].path}',
    f'--examples={file}',
    f'--output_dir={output}',
  )
  said = capsys.readouterr().out
  assert 'mine: 40 examples of the classes 2, 5' in said
  model = tf.keras.models.load_model(output / 'model.keras')
  found = model.predict(x, verbose=0).argmax(axis=1)
  assert set(found) == {2, 5} and np.mean(found == y) > 0.8


def test_wrong_flags_and_files_are_named(runs, tmp_path):
  def npz(name, **arrays):
    np.savez(tmp_path / name, **arrays)
    return f'--examples={tmp_path}/{name}'

  run = f'--run={runs["proto"].path}'
  cases = [
    ((run, '--client=client_3'), 'Did you mean client_0003'),
    ((run, f'--examples={tmp_path}/no.npz'), 'must be a file .npz'),
    (
      (run, npz('keys.npz', images=np.zeros(3), y=[1])),
      "writes it: KeyError: 'x is not a file in the archive",
    ),
    (
      (run, npz('shape.npz', x=np.zeros((2, 64)), y=[0, 1])),
      '[examples, 8, 8], got [2, 64]',
    ),
  ]
  for flags, message in cases:
    with pytest.raises((errors.UserError, export.ExportError)) as error:
      personalize(*flags)
    assert message in str(error.value), flags
  assert not os.path.exists(f'{runs["proto"].path}/personalized')


def test_files_of_devices_of_other_kinds_are_named(tmp_path):
  np.savetxt(tmp_path / 'a.csv', np.eye(2))
  (tmp_path / 'b.pkl').write_bytes(pickle.dumps(([1], [2])))
  np.save(tmp_path / 'c.npy', np.eye(2))
  np.savez(tmp_path / 'd.npz', [1], [2])
  np.savez(tmp_path / 'e.npz', x=np.array([[1], 'a'], object), y=[1, 2])
  reasons = [
    *3 * ['Error: '],
    'x is not a file in the archive',
    'Object arrays cannot',
  ]
  for path, reason in zip(sorted(tmp_path.iterdir()), reasons, strict=True):
    said = f'as numpy.savez.path, x=x, y=y. writes it: .*{reason}'
    with pytest.raises(errors.UserError, match=said):
      catalog.read_device(str(path))
