"""Evaluates a meta-model device by device: by data, by step, personalized."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tqdm

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
from tasks.runs import progress
import tff_debias
from tff_debias import runtime

GROUPS = ('took part', 'not yet', 'held out')

# The data of this many devices are sent to TFF's worker at a time, which bounds
# the memory.
_CLIENTS_PER_CALL = 20

Row = dict[str, Any]
# The values of all devices, float64 [clients] or [clients, steps]; NaN where a
# device was not evaluated or its result is not finite.
Results = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The results of all devices; a value that is missing or not finite is NaN.

  Attributes:
    trained_steps: The number of MAML steps in training; 0 without MAML.
    clients: A row for each device: its id `client`, its `group` (of `GROUPS`),
      its numbers of `train_examples` and `test_examples`, the number of the
      latter that were `tested` (with prototypes, those of the classes that the
      device has), `meta_accuracy` and `meta_loss` (of the meta-model as it is),
      `accuracy` and `loss` (personalized), and `gain` (of accuracy).
    few_shot: A row for each `group` and number of local `examples` (a number,
      or `all`): the number of `clients` that have as many, and `mean`, `q10`
      and `q90` of their accuracy, in which a test example of a class without a
      prototype is wrong.
    steps: A row for each `group` and number of MAML `steps`, likewise.
    notes: Remarks without which the numbers would mislead.
  """

  title: str
  round_num: int
  trained_steps: int
  clients: list[Row]
  few_shot: list[Row]
  steps: list[Row]
  notes: list[str]


def evaluate(
  experiment: experiment_lib.Experiment,
  weights: Any,
  round_num: int,
  *,
  max_clients: int | None = None,
  few_shot: Sequence[int] | None = None,
  num_steps: int | None = None,
) -> Evaluation:
  """Evaluates a meta-model, that of the given round, device by device.

  At most `max_clients` devices are evaluated, chosen at random. `few_shot` are
  numbers of local examples, by default 1, 2, 5, 10, 20, 50, … The curve against
  MAML steps ends at `num_steps`, by default twice those of the experiment.
  """
  if num_steps is not None and not _is_maml(experiment):
    raise errors.UserError(
      f'--steps={num_steps} is for MAML, but the run has'
      f' --personalization={experiment.settings.personalization_in_tests}.'
    )
  population = _Population(experiment, round_num, max_clients)
  most = population.train_examples.max()
  if few_shot is None:
    few_shot = [n * 10**k for k in range(9) for n in (1, 2, 5)]
    few_shot = [n for n in few_shot if n < most]
  elif max(few_shot, default=0) > most:
    raise errors.UserError(
      f'--few_shot has {max(few_shot)}, but no device has more than {most}'
      ' training examples.'
    )
  if type(experiment.personalization_in_tests) is tff_debias.NoPersonalization:
    few_shot = []
  try:
    with progress.progress(
      len(population.ids) * (1 + len(few_shot)), 'device'
    ) as bar:
      return _evaluate(population, weights, few_shot, num_steps, bar)
  except runtime.ComputationError as e:
    raise errors.UserError(
      f'The evaluation failed: {errors.first_line(e)}. Nothing was written.'
    ) from e


def _is_maml(experiment: experiment_lib.Experiment) -> bool:
  # The steps of a class that is derived from it can be others.
  return type(experiment.personalization_in_tests) is tff_debias.Maml


def _evaluate(
  population: '_Population',
  weights: Any,
  few_shot: Sequence[int],
  num_steps: int | None,
  bar: tqdm.tqdm,
) -> Evaluation:
  experiment = population.experiment
  personalization = experiment.personalization_in_tests
  arguments = (experiment.model, personalization)
  options = {'max_grad_norm': experiment.max_grad_norm_in_tests}
  test = tff_debias.build_client_evaluation(*arguments, **options)
  steps, shots, trained = [], [], 0
  if _is_maml(experiment):
    trained = personalization.num_steps
    shown = num_steps or 2 * trained
    by_step = tff_debias.build_step_evaluation(
      *arguments, max(shown, trained), **options
    )
    table = population.run(by_step, weights, bar)
    meta, personalized = (
      {name: values[:, step] for name, values in table.items()}
      for step in (0, trained)
    )
    for step in range(shown + 1):
      steps += population.curve('steps', step, table['accuracy'][:, step])
  else:
    personalized = meta = population.run(test, weights, bar)
    if isinstance(experiment.personalization, tff_debias.Proto):
      meta = {name: v * np.nan for name, v in personalized.items()}
    elif type(personalization) is not tff_debias.NoPersonalization:
      as_it_is = tff_debias.build_client_evaluation(
        experiment.model, tff_debias.NoPersonalization(), **options
      )
      bar.total += len(population.ids)
      meta = population.run(as_it_is, weights, bar)
  if few_shot and not isinstance(experiment.personalization, tff_debias.Proto):
    shots += population.curve('examples', 0, population.right_share(meta))
  for size in few_shot:
    results = population.run(test, weights, bar, size)
    shots += population.curve('examples', size, population.right_share(results))
  if few_shot:
    everything = population.right_share(personalized)
    shots += population.curve('examples', 'all', everything)
  settings = experiment.settings
  return Evaluation(
    f'{settings.title}; the model {settings.evaluated_model!r} after round'
    f' {population.round_num}',
    population.round_num,
    trained,
    population.rows(meta, personalized),
    shots,
    steps,
    population.notes(personalized, bool(few_shot)),
  )


class _Population:
  """The devices that are evaluated: their groups, their data, their results."""

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    round_num: int,
    max_clients: int | None,
  ):
    self.experiment = experiment
    self.round_num = round_num
    everyone = experiment.train_data.client_ids
    rng = experiment_lib.Stream.EVALUATED_CLIENTS.rng(experiment.settings.seed)
    chosen = rng.permutation(len(everyone))[:max_clients]
    self._places = np.sort(chosen)
    self.ids = [everyone[place] for place in self._places]
    held_out = set(experiment.held_out_clients)
    took_part = experiment.clients_until(round_num)
    self._groups = np.array(
      [
        GROUPS[2 if id_ in held_out else 0 if id_ in took_part else 1]
        for id_ in self.ids
      ]
    )
    self.train_examples, self._test_examples = (
      np.array([_size(data.create_tf_dataset_for_client(i)) for i in self.ids])
      for data in (experiment.train_data, experiment.test_data)
    )

  def run(
    self,
    evaluation: tff.Computation,
    weights: Any,
    bar: tqdm.tqdm,
    size: int | None = None,
  ) -> Results:
    """The results of the devices with at least `size` training examples."""
    results = {}
    clients = np.flatnonzero(self.train_examples >= (size or 0))
    for start in range(0, len(clients), _CLIENTS_PER_CALL):
      chunk = clients[start : start + _CLIENTS_PER_CALL]
      answers = evaluation(weights, [self._data(i, size) for i in chunk])
      for i, answer in zip(chunk, answers, strict=True):
        for name, value in answer.items():
          if name not in results:
            results[name] = np.full([len(self.ids), *np.shape(value)], np.nan)
          is_known = name == 'num_examples' or answer['is_included']
          results[name][i] = np.where(is_known, value, np.nan)
      bar.update(len(chunk))
    bar.update(len(self.ids) - len(clients))
    return results

  def _data(self, client: int, size: int | None) -> Mapping[str, Any]:
    """A device's data, of its training examples the first of a fixed order."""
    data = self.experiment.client_data(self.ids[client])
    if size is not None:
      num_examples = self.train_examples[client]
      rng = experiment_lib.Stream.FEW_SHOT_EXAMPLES.rng(
        self.experiment.settings.seed, self._places[client]
      )
      order = rng.permutation(num_examples)[:size]
      examples = data['train'].unbatch().batch(num_examples)
      chosen = tf.nest.map_structure(
        lambda values: tf.gather(values, order), examples.get_single_element()
      )
      chosen = tf.data.Dataset.from_tensor_slices(chosen)
      data['train'] = chosen.batch(experiment_lib.EVALUATION_BATCH_SIZE)
    return data

  def right_share(self, results: Results) -> np.ndarray:
    """The accuracy in which a test example that was not tested is wrong."""
    tested = results['num_examples']
    right = np.where(tested == 0, 0.0, results['accuracy'] * tested)
    with np.errstate(invalid='ignore'):
      return right / self._test_examples

  def curve(self, name: str, place: Any, accuracy: np.ndarray) -> list[Row]:
    """The rows of one place of a curve: over the devices with a value there."""
    rows = []
    for group in GROUPS:
      values = accuracy[(self._groups == group) & np.isfinite(accuracy)]
      if len(values):
        row = {'group': group, name: place, 'clients': len(values)}
        low, high = quantile(values, (0.1, 0.9))
        rows.append(row | {'mean': values.mean(), 'q10': low, 'q90': high})
    return rows

  def rows(self, meta: Results, personalized: Results) -> list[Row]:
    """The rows of the devices."""
    columns = {
      'client': self.ids,
      'group': self._groups.tolist(),
      'train_examples': self.train_examples,
      'test_examples': self._test_examples,
      'tested': personalized['num_examples'],
      'meta_accuracy': meta['accuracy'],
      'meta_loss': meta['loss'],
      'accuracy': personalized['accuracy'],
      'loss': personalized['loss'],
      'gain': personalized['accuracy'] - meta['accuracy'],
    }
    return [
      dict(zip(columns, values, strict=True))
      for values in zip(*columns.values(), strict=True)
    ]

  def notes(self, personalized: Results, has_few_shot: bool) -> list[str]:
    """The remarks on the results."""
    notes = []
    num_clients = len(self.experiment.train_data.client_ids)
    if len(self.ids) < num_clients:
      notes.append(f'{len(self.ids)} of {num_clients} devices, chosen by seed.')
    personalization = self.experiment.personalization_in_tests
    if type(personalization) is tff_debias.NoPersonalization:
      notes.append('The method does not personalize: there is no gain.')
    if isinstance(self.experiment.personalization, tff_debias.Proto):
      notes.append(
        'Prototypes replace the last layer, which is therefore not trained. So'
        ' the meta-model has no accuracy of its own, and no gain is given.'
      )
    lost = np.flatnonzero(np.isnan(personalized['accuracy']))
    if len(lost):
      named = [self.ids[i] for i in lost]
      notes.append(
        f'{len(named)} devices have no data to train or test on, or no finite'
        f' result. No mean includes them: {", ".join(named[:5])}'
        + (', …' if len(named) > 5 else '.')
      )
    untested = int(
      self._test_examples.sum() - personalized['num_examples'].sum()
    )
    if untested:
      notes.append(
        f'{untested} test examples are of a class of which their device has no'
        ' training example. The accuracy leaves them out; in the few-shot curve'
        ' they are wrong.'
      )
    if has_few_shot:
      notes.append(
        'A point of the few-shot curve is the mean over the devices with at'
        ' least that number of training examples. Each trains on that many of'
        ' them, chosen at random, and keeps those of the point before.'
      )
    return notes


def quantile(values: np.ndarray, shares: Any) -> Any:
  """The smallest value with that share at or below it, as in the metrics."""
  return np.quantile(values, shares, method='inverted_cdf')


def _size(dataset: tf.data.Dataset) -> int:
  return int(dataset.reduce(np.int64(0), lambda total, _: total + 1))
