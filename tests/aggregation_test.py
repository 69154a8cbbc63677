import numpy as np
import pytest
import reference
import small_models
import tensorflow_federated as tff

from tff_debias import corrections

pytestmark = pytest.mark.usefixtures('runtime')


def test_an_aggregator_gives_the_mean_of_those_that_count(tmp_path):
  process = small_models.linear_process(
    corrections.Scaf(),
    tmp_path,
    model_aggregator=tff.aggregators.MeanFactory(no_nan_division=True),
    learning_rate=0.05,
  )
  nan = small_models.linear_client(1, data=small_models.NAN)
  state, metrics = process.next(
    process.initialize(),
    [small_models.linear_client(0), nan, small_models.linear_client(2)],
  )
  loop = reference.ScafLoop(
    [np.zeros((3, 1))], reference.squared_gradient, rate=lambda t: 0.05
  )
  loop.round(
    {i: small_models.batches(small_models.linear_client(i)) for i in (0, 2)}
  )
  np.testing.assert_allclose(
    small_models.selected(process, state), loop.selected[0], atol=1e-5
  )
  np.testing.assert_allclose(
    state.finalizer['mean_states'][0][0],
    reference.mean(loop.kept)[0],
    atol=1e-5,
  )
  assert metrics['client_work']['participants'] == 2
  # Rounds in which nobody counts leave the aggregator as it was, too.
  for nobody in ([], [small_models.linear_client(1, 0)]):
    after, metrics = process.next(state, nobody)
    small_models.assert_same(
      after.aggregator['process'], state.aggregator['process']
    )
    small_models.assert_same(after.finalizer, state.finalizer)
    small_models.assert_same(
      after.global_model_weights, state.global_model_weights
    )
    assert metrics['finalizer']['update_norm'] == 0


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
