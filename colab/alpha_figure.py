"""Draws how PFLDyn's accuracy on digits depends on α K β.

    uv run python -m colab.alpha_figure

trains 36 times.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import sys
import tempfile

import matplotlib.axes
import matplotlib.figure
import numpy as np

from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib
import tff_debias

ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0)
LOCAL_STEPS = (3, 10, 30)
LEARNING_RATE = 0.1
_PUBLISHED = {'maml_steps': 5, 'maml_learning_rate': 0.01}
_DEVICES = {
  'partition': 'acid',
  'num_clients': 40,
  'classes_per_client': 3,
  'clients_per_round': 4,
  'batch_size': 10,
}
NUM_ROUNDS, ROUNDS_PER_TEST = 100, 10
# None of the seeds for which results are reported.
SEED = 100


def accuracies(
  personalization: str, local_steps: int
) -> dict[float, tuple[float, float]]:
  """Trains with every α, and without a correction.

  Args:
    personalization: `maml` or `proto`.
    local_steps: K.

  Returns:
    For each α, and 0 for no correction: the mean accuracy of the last three
    tests, and the largest loss of accuracy below the best test before.
  """
  results = {}
  for alpha in (0.0, *ALPHAS):
    tests = _train(personalization, local_steps, alpha)
    loss = np.max(np.maximum.accumulate(tests) - tests)
    results[alpha] = float(np.mean(tests[-3:])), float(loss)
    print(personalization, local_steps, alpha, results[alpha], flush=True)
  return results


def _train(personalization: str, local_steps: int, alpha: float) -> list[float]:
  """The accuracy in every test of a run; without a correction if α is 0."""
  experiment = experiment_lib.Experiment(
    settings_lib.resolve(
      correction='dyn' if alpha else 'none',
      alpha=alpha or None,
      personalization=personalization,
      **(_PUBLISHED if personalization == 'maml' else {}),
      **_DEVICES,
      local_steps=local_steps,
      learning_rate=LEARNING_RATE,
      seed=SEED,
    )
  )
  evaluate = experiment.build_evaluation()
  tests = []
  with tempfile.TemporaryDirectory() as folder:
    process = experiment.build_process(tff_debias.ClientStorage(folder))
    state = process.initialize()
    for round_num in range(1, NUM_ROUNDS + 1):
      data = experiment.training_data(round_num)
      state = process.next(state, data).state
      if round_num % ROUNDS_PER_TEST == 0:
        weights = process.get_model_weights(state)
        metrics = evaluate(weights, experiment.evaluation_data)
        tests.append(float(metrics['by_client']['accuracy']['mean']))
  return tests


def draw(
  results: Mapping[str, Mapping[int, Mapping[float, tuple[float, float]]]],
  path: str,
) -> None:
  """Draws the accuracy, and its largest loss on the way, over α K β.

  Args:
    results: By personalization and K, what `accuracies` returned.
    path: The file.
  """
  figure = matplotlib.figure.Figure((7, 5), layout='constrained')
  panels = figure.subplots(2, 2, sharex='col', sharey='row')
  for column, (personalization, by_steps) in zip(
    panels.T, results.items(), strict=True
  ):
    for line, (steps, by_alpha) in enumerate(by_steps.items()):
      _add_line(column, line, steps, by_alpha)
    column[0].set_title(
      {'maml': 'MAML', 'proto': 'Prototypes'}[personalization]
    )
  for axes in panels.flat:
    axes.set_xscale('log')
    axes.grid(alpha=0.3)
  for axes in panels[1]:
    axes.set_xlabel('α K β')
  panels[0][0].set_ylabel('mean of the last 3 tests')
  panels[1][0].set_ylabel('largest loss before')
  handles, labels = panels[0][0].get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=3,
    title='dotted: Per-FedAvg with the same K',
  )
  figure.suptitle(f'PFLDyn on digits, ACID, 1 seed, {NUM_ROUNDS} rounds')
  figure.savefig(path, dpi=100)


def _add_line(
  column: Sequence[matplotlib.axes.Axes],
  line: int,
  steps: int,
  by_alpha: Mapping[float, tuple[float, float]],
) -> None:
  """Draws the accuracy in the upper panel, and the loss in the lower."""
  alphas = [alpha for alpha in by_alpha if alpha]
  for place, axes in enumerate(column):
    axes.plot(
      [alpha * steps * LEARNING_RATE for alpha in alphas],
      [by_alpha[alpha][place] for alpha in alphas],
      ('o-', 's--', '^-.')[line],
      color=f'C{line}',
      label=f'K = {steps}',
    )
    axes.axhline(
      by_alpha[0.0][place], color=f'C{line}', linestyle=':', linewidth=1
    )


def main(path: str = 'colab/results/accuracy_against_alpha.png') -> None:
  """Trains and draws."""
  with tff_debias.runtime.local_context():
    results = {
      personalization: {
        steps: accuracies(personalization, steps) for steps in LOCAL_STEPS
      }
      for personalization in ('maml', 'proto')
    }
  print(json.dumps(results))
  draw(results, path)


if __name__ == '__main__':
  main(*sys.argv[1:])
