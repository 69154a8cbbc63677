import pytest
import small_models
import tensorflow_federated as tff

from tff_debias import corrections

pytestmark = pytest.mark.usefixtures('runtime')


@pytest.mark.slow
def test_measurements_of_an_aggregator_are_metrics(tmp_path):
  process = small_models.linear_process(
    corrections.NoCorrection(),
    tmp_path,
    model_aggregator=tff.learning.robust_aggregator(),
  )
  x, y = small_models.DATA[2]
  far = small_models.linear_client(2, data=(x, y + 1000))
  state = process.initialize()
  for clients, zeroed in (
    ([small_models.linear_client(i) for i in (0, 1)], 0),
    ([small_models.linear_client(0), far], 1),
  ):
    state, metrics = process.next(state, [c['data'] for c in clients])
    measured = metrics['aggregator']['update']
    assert measured['zeroed_count'] == zeroed
    assert measured['zeroing']['clipping_norm'] > 0
    # The update of the client that is far off would be above 100.
    assert 0 < metrics['finalizer']['update_norm'] < 1
  # A round of nobody leaves the aggregator as it was.
  small_models.assert_same(
    process.next(state, []).state.aggregator, state.aggregator
  )


@pytest.mark.parametrize(
  ('aggregator', 'message'),
  [
    ('mean', 'aggregator must be a tff.aggregators factory, got str'),
    (tff.aggregators.MeanFactory, 'aggregator must be .* factory, got'),
  ],
)
def test_a_wrong_aggregator_is_refused(tmp_path, aggregator, message):
  with pytest.raises(TypeError, match=message):
    small_models.linear_process(
      corrections.Dyn(0.5), tmp_path / 'new', model_aggregator=aggregator
    )
  # The folder is not claimed, so that the next try may have it.
  assert not (tmp_path / 'new').exists()
