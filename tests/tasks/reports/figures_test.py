import numpy as np
from PIL import Image
import pytest

from tasks.reports import figures
from tasks.reports import savings
from tasks.runs import methods as methods_lib
from tasks.runs import settings as settings_lib


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
    f'{prefix}/mean': accuracy,
    f'{prefix}/q10': accuracy - 0.1,
    f'{prefix}/q90': 1.0,
  }


def test_the_convergence_shows_the_run_its_baselines_and_levels(
  tmp_path, drawn
):
  settings = settings_lib.resolve(seed=3)
  curves = [
    savings.curve(own, [metrics(r, first + 0.1 * r) for r in range(rounds)])
    for own, first, rounds in (
      (settings, 0.2, 5),
      (settings.uncorrected(), 0.3, 4),
    )
  ]
  path = str(tmp_path / 'a.png')
  figures.save_convergence(curves, settings, path, 0.25)
  (axis,) = drawn[0].axes
  own, other, level = axis.lines
  np.testing.assert_allclose(own.get_ydata(), [0.2, 0.3, 0.4, 0.5, 0.6])
  np.testing.assert_allclose(other.get_ydata(), [0.3, 0.4, 0.5, 0.6])
  assert list(other.get_xdata()) == [0, 1, 2, 3]
  assert list(level.get_ydata()) == [0.25, 0.25]
  assert [line.get_label() for line in axis.lines] == [
    *('PFLDyn', 'Per-FedAvg', 'each device alone')
  ]
  for line, (color, style) in (own, ('C0', '-')), (other, ('C1', '--')):
    assert (line.get_color(), line.get_linestyle()) == (color, style)
  title = drawn[0].get_suptitle()
  assert title.startswith('PFLDyn, MAML on digits') and 'seed 3' in title
  # The models need no axis of their own.
  assert axis.get_xlabel() == 'rounds (30 models each, down and up)'
  for name in ('a.png', 'a.pdf'):
    assert (tmp_path / name).stat().st_size > 5000
  with Image.open(tmp_path / 'a.png') as image:
    assert image.size[0] > 1000


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
    0.3,
  )
  assert len(drawn[0].axes) == 4
  for axis, place in zip(drawn[0].axes, (4, 160) * 2, strict=True):
    fed_avg, scaf, target, local = axis.lines
    assert scaf.get_xdata()[-1] == place
    np.testing.assert_allclose(fed_avg.get_ydata(), [0.11, 0.51, 0.81, 0.91])
    assert axis.get_ylim()[0] < 0.1
    assert list(target.get_ydata()) == [0.85, 0.85]
    assert list(local.get_ydata()) == [0.3, 0.3]
    assert fed_avg.get_linestyle() != scaf.get_linestyle()
  (legend,) = drawn[0].legends
  assert [text.get_text() for text in legend.get_texts()] == [
    *('Per-FedAvg', 'PFLScaf', 'target', 'each device alone')
  ]
  assert legend.get_title().get_text() == 'mean and range over seeds'
  assert drawn[0].get_suptitle() == 'A title, 2 seeds'


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
  # All methods cost the same, so there is no panel of models.
  assert [len(figure.axes) for figure in drawn] == [1, 1]
  every, some = (
    {line.get_label(): line for line in figure.axes[0].lines}
    for figure in drawn
  )
  assert len({line.get_color() for line in every.values()}) == len(curves)
  for name, line in some.items():
    assert line.get_color() == every[name].get_color()
  assert not drawn[0].legends[0].get_title().get_text()
