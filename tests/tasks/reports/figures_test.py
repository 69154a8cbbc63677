import numpy as np
from PIL import Image
import pytest

from tasks.reports import figures
from tasks.reports import savings
from tasks.runs import methods as methods_lib


@pytest.fixture
def drawn(monkeypatch):
  """The figures, kept open to look into them."""
  kept = []
  save = figures.save

  def keep(figure, path):
    kept.append(figure)
    save(figure, path)

  monkeypatch.setattr(figures, 'save', keep)
  return kept


def metrics(round_num, accuracy):
  prefix = 'evaluation/by_client/accuracy'
  return {
    'round': round_num,
    'distributor/models': 10.0 * round_num,
    'aggregator/models': 20.0 * round_num,
    'client_work/train/loss': 2.0 / (round_num or 1),
    'finalizer/update_norm': 0.5,
    f'{prefix}/mean': accuracy,
    f'{prefix}/q10': accuracy - 0.1,
    f'{prefix}/q90': 1.0,
  }


def test_the_convergence_has_an_axis_of_models_and_the_loss(tmp_path, drawn):
  rows = [metrics(r, 0.2 + 0.1 * r) for r in range(5)]
  figures.save_convergence(rows, 'A title', str(tmp_path / 'a.png'))
  accuracy, loss, norm = drawn[0].axes
  (line,) = accuracy.lines
  np.testing.assert_allclose(line.get_ydata(), [0.2, 0.3, 0.4, 0.5, 0.6])
  assert accuracy.get_ylim()[0] < 0.1
  (models,) = accuracy.child_axes
  assert models.get_xlim() == pytest.approx((0, 120))
  np.testing.assert_allclose(loss.lines[0].get_ydata()[-1], 0.5)
  # The server of FedAvg has no correction.
  assert [line.get_label() for line in norm.lines] == ['update of the model']
  for name in ('a.png', 'a.pdf'):
    assert (tmp_path / name).stat().st_size > 5000
  with Image.open(tmp_path / 'a.png') as image:
    assert image.size[0] > 1000


def test_the_convergence_shows_baselines_beside_the_run(tmp_path, drawn):
  rows = [metrics(r, 0.2 + 0.1 * r) for r in range(5)]
  others = [metrics(r, 0.3 + 0.1 * r) for r in range(4)]
  path = str(tmp_path / 'a.png')
  figures.save_convergence(rows, 'Own, a title', path, {'Other': others})
  own, other = drawn[0].axes[0].lines
  assert own.get_label() == 'Own, mean over devices'
  assert other.get_label() == 'Other'
  np.testing.assert_allclose(other.get_ydata(), [0.3, 0.4, 0.5, 0.6])
  assert list(other.get_xdata()) == [0, 1, 2, 3]
  assert other.get_linestyle() != own.get_linestyle()


def test_the_comparison_shows_starts_targets_and_both_axes(tmp_path, drawn):
  rounds = np.arange(1, 5)
  curves = [
    savings.Curve(
      method,
      personalization,
      seed,
      rounds,
      models * rounds,
      np.array([0.1, 0.5, 0.8, 0.9]) + 0.02 * seed,
    )
    for method, models in (('per_fed_avg', 20), ('pfl_scaf', 40))
    for personalization in ('maml', 'proto')
    for seed in (0, 1)
  ]
  figures.save_comparison(
    curves,
    {'maml': [0.85], 'proto': [0.85]},
    'A title',
    str(tmp_path / 'a.png'),
  )
  assert len(drawn[0].axes) == 4
  for axis, place in zip(drawn[0].axes, (4, 160) * 2, strict=True):
    fed_avg, scaf, target = axis.lines
    assert scaf.get_xdata()[-1] == place
    np.testing.assert_allclose(fed_avg.get_ydata(), [0.11, 0.51, 0.81, 0.91])
    assert axis.get_ylim()[0] < 0.1
    assert list(target.get_ydata()) == [0.85, 0.85]
    assert fed_avg.get_linestyle() != scaf.get_linestyle()
  (legend,) = drawn[0].legends
  assert [text.get_text() for text in legend.get_texts()] == [
    *('Per-FedAvg', 'PFLScaf', 'target')
  ]
  assert legend.get_title().get_text() == 'mean and range over seeds'


def test_a_method_has_the_same_line_in_every_figure(tmp_path, drawn):
  curves = {
    method: savings.Curve(
      *(method, 'maml', 0, np.arange(1, 3), np.arange(1, 3), np.ones(2))
    )
    for method in (*methods_lib.METHODS, 'Own')
  }
  for methods in (list(curves), ['pfl_dyn', 'Own']):
    figures.save_comparison(
      [curves[method] for method in methods],
      {'maml': []},
      'A title',
      str(tmp_path / 'a.png'),
    )
  every, some = (
    {line.get_label(): line for line in figure.axes[0].lines}
    for figure in drawn
  )
  assert len({line.get_color() for line in every.values()}) == len(curves)
  for name, line in some.items():
    assert line.get_color() == every[name].get_color()
  assert not drawn[0].legends[0].get_title().get_text()
