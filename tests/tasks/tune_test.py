import csv
import json

import pytest

from tasks import train
from tasks import tune


@pytest.mark.slow
def test_tunes_and_the_choice_can_be_trained(tmp_path, capsys):
  tune.prepare(
    [
      '--grid=alpha=0.01,0.1',
      *('--methods=fed_dyn', '--personalizations=none', '--seeds=3'),
      *('--partition=acid', '--classes_per_client=3', '--rounds=2'),
      *('--num_clients=8', '--clients_per_round=2', '--local_steps=2'),
      *(f'--output_dir={tmp_path}', '--runs_at_a_time=1'),
    ]
  )()
  with open(tmp_path / 'tuned.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    folder = tmp_path / f'fed_dyn_none_alpha={row["alpha"]}_seed3'
    with open(folder / 'settings.json') as file:
      settings = json.load(file)
    assert settings['alpha'] == float(row['alpha'])
    assert settings['validation_share'] == 0.2
    with open(folder / 'metrics.csv', newline='') as file:
      *_, last = csv.DictReader(file)
    # Each fifth training example of the 8 clients.
    sizes = (218, 142, 119, 122, 121, 121, 137, 218)
    assert last['evaluation/num_examples'] == str(sum(n // 5 for n in sizes))
    found = float(last['evaluation/by_client/accuracy/mean'])
    assert found == pytest.approx(float(row['accuracy']))
  best = max(rows, key=lambda row: float(row['accuracy']))
  edge = f'fed_dyn/none: alpha={best["alpha"]} is at the edge of the grid'
  assert edge in capsys.readouterr().out
  with pytest.raises(SystemExit) as end:
    train.prepare(
      [
        f'--tuned={tmp_path / "tuned.json"}',
        *('--method=fed_dyn', '--show_settings'),
      ]
    )
  assert end.value.code == 0
  shown = capsys.readouterr().out
  assert f'--alpha={best["alpha"]}\n' in shown
  # The tuned run is tested on the test examples.
  assert '--validation_share=0.0\n' in shown
  assert '--num_clients=100\n' in shown
