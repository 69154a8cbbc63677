"""Writes a client's personalized model: `python -m tasks.personalize --help`.

The meta-model is that of the newest checkpoint of a run. The run should be your
own, or of somebody whose programs you would run.
"""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from tasks import catalog
from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib

_USAGE = """
Writes the personalized model of a device.

what:
  --run=NAME  The folder of the run.
  --client=NAME  The client of the run, such as client_0007.
  --examples=NAME  In the place of --client: a file .npz with the examples of a
    new client, the arrays x (raw input, as in the data set) and y (the classes,
    integers).

output:
  --output_dir=NAME  The folder for the model. By default personalized/CLIENT in
    the folder of the run (without --client, the name of the file of examples).

Examples:
  python -m tasks.personalize --run=runs/NAME --client=client_0007
  python -m tasks.personalize --run=runs/NAME --examples=mine.npz
  python -m tasks.personalize --run=runs/NAME --client=a --output_dir=mine
"""


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what personalizes the model and writes it."""
  args = cli.parse(_USAGE, argv)
  if not args.run:
    raise errors.UserError('--run=runs/NAME must name the run.')
  if bool(args.client) == bool(args.examples):
    raise errors.UserError(
      'Give either --client, a client of the run, or --examples, a file with'
      ' the examples of a new one.'
    )
  folder = folder_lib.RunFolder(args.run)
  settings = folder.read()
  given = catalog.read_device(args.examples) if args.examples else None
  return lambda: _personalize(args, settings, folder, given)


def _personalize(
  args: cli.Args,
  settings: settings_lib.Settings,
  folder: folder_lib.RunFolder,
  given: dict[str, np.ndarray] | None,
) -> None:
  from tasks.runs import experiment as experiment_lib
  from tasks.runs import training
  import tff_debias
  from tff_debias import runtime

  experiment = experiment_lib.Experiment(settings)
  if given is not None:
    name = os.path.splitext(os.path.basename(args.examples))[0]
    data = {'train': (given['x'], given['y'])}
  else:
    name, ids = args.client, experiment.train_data.client_ids
    if name not in ids:
      raise errors.UserError(
        f'There is no --client={name} in the run, whose clients are {ids[0]}'
        f' to {ids[-1]}.{errors.did_you_mean(name, ids)}'
      )
    batches = experiment.client_data(name).items()
    data = {split: _arrays(dataset) for split, dataset in batches}
  keras_model = experiment.build_keras_model()
  with runtime.local_context():
    weights, round_num = training.load(experiment, folder)
    weights.assign_weights_to(keras_model)
    exported = tff_debias.export_personalized_model(
      keras_model,
      experiment.model,
      experiment.personalization_in_tests,
      data['train'],
      args.output_dir or os.path.join(folder.path, 'personalized', name),
      max_grad_norm=experiment.max_grad_norm_in_tests,
    )
  y = data['train'][1]
  classes = ', '.join(map(str, np.unique(y)))
  print(f'{settings.title}, after round {round_num}')
  print(f'{name}: {len(y)} examples of the classes {classes}')
  if 'test' in data:
    x, y = data['test']
    before, after = (
      np.mean(model.predict(x, verbose=0).argmax(axis=1) == y)
      for model in (keras_model, exported.keras_model)
    )
    print(
      f'accuracy on its {len(y)} test examples: {before:.4f} by the'
      f' meta-model, {after:.4f} personalized'
    )
  for file, difference in exported.difference.items():
    print(f'{file}: probabilities right to within {difference:.1e}')


def _arrays(batches: Any) -> tuple[np.ndarray, np.ndarray]:
  """The inputs and the labels of all examples."""
  found = list(batches.as_numpy_iterator())
  x, y = (np.concatenate([batch[k] for batch in found]) for k in 'xy')
  return x, y


if __name__ == '__main__':
  cli.run(prepare)
