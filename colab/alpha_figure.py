"""Draws how PFLDyn's accuracy on digits depends on α K β.

uv run python -m colab.alpha_figure
"""

import json
import sys
import tempfile

import matplotlib.figure
import numpy as np

from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib
import tff_debias

ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0)
LOCAL_STEPS = (3, 10, 30)
LEARNING_RATE = 0.1
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
  for method, alphas in (('per_fed_avg', (0.0,)), ('pfl_dyn', ALPHAS)):
    experiment = experiment_lib.Experiment(
      settings_lib.Settings(
        method=method,
        personalization=personalization,
        local_steps=local_steps,
        learning_rate=LEARNING_RATE,
        seed=SEED,
      )
    )
    evaluate = experiment.build_evaluation()
    with tempfile.TemporaryDirectory() as folder:
      process = experiment.build_process(tff_debias.ClientStorage(folder))
      for alpha in alphas:
        state = process.initialize()
        if alpha:
          hparams = process.get_hparams(state)
          state = process.set_hparams(state, {**hparams, 'alpha': alpha})
        tests = []
        for round_num in range(1, NUM_ROUNDS + 1):
          data = experiment.training_data(round_num)
          state = process.next(state, data).state
          if round_num % ROUNDS_PER_TEST == 0:
            weights = process.get_model_weights(state)
            metrics = evaluate(weights, experiment.evaluation_data)
            tests.append(float(metrics['by_client']['accuracy']['mean']))
        loss = np.max(np.maximum.accumulate(tests) - tests)
        results[alpha] = float(np.mean(tests[-3:])), float(loss)
        print(personalization, local_steps, alpha, results[alpha], flush=True)
  return results


def draw(
  results: dict[str, dict[int, dict[float, tuple[float, float]]]], path: str
) -> None:
  """Draws the accuracy over α K β, a panel for each personalization.

  Args:
    results: By personalization and K, what `accuracies` returned.
    path: The file.
  """
  figure = matplotlib.figure.Figure((9, 4), layout='constrained')
  panels = figure.subplots(1, 2, sharey=True)
  titles = {'maml': 'MAML', 'proto': 'Prototypes'}
  for axes, (personalization, by_steps) in zip(
    panels, results.items(), strict=True
  ):
    for (steps, by_alpha), style, color in zip(
      by_steps.items(),
      ('o-', 's--', '^-.'),
      ('tab:blue', 'tab:orange', 'tab:green'),
      strict=True,
    ):
      alphas = [alpha for alpha in by_alpha if alpha]
      axes.plot(
        [alpha * steps * LEARNING_RATE for alpha in alphas],
        [by_alpha[alpha][0] for alpha in alphas],
        style,
        color=color,
        label=f'K = {steps}',
      )
      axes.axhline(by_alpha[0.0][0], color=color, linestyle=':', linewidth=1)
    axes.set_xscale('log')
    axes.set_xlabel('α K β')
    axes.set_title(titles[personalization])
    axes.grid(alpha=0.3)
  panels[0].set_ylabel(
    f'accuracy, rounds {NUM_ROUNDS - 2 * ROUNDS_PER_TEST} to {NUM_ROUNDS}'
  )
  panels[0].legend(title='PFLDyn; dotted:\nPer-FedAvg')
  figure.savefig(path, dpi=100)


def main(path: str = 'colab/accuracy_against_alpha.png') -> None:
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
