import numpy as np

from corrections import simulation
from tff_debias import corrections


def test_all_is_the_mean_of_the_newest_models():
  random = np.random.RandomState(0)
  newest = corrections.NewestModel()
  initial = simulation.constants(simulation.weights(random))
  models = [initial] * simulation.NUM_CLIENTS
  states = [newest.initial_state(initial)] * simulation.NUM_CLIENTS
  mean = newest.initial_state(initial)
  mean = tuple(np.asarray(m, np.float64) for m in mean)
  for _ in range(5):
    start = simulation.constants(simulation.weights(random))
    participants = random.permutation(simulation.NUM_CLIENTS)[:2]
    for i in participants:
      update = simulation.constants(simulation.weights(random))
      work = corrections.LocalWork(start, update, 1.0, 0.1)
      states[i] = tuple(np.asarray(s, np.float64) for s in states[i])
      change = newest.state_change(states[i], (), work)
      states[i] = tuple(s + d for s, d in zip(states[i], change, strict=True))
      mean = tuple(
        m + np.asarray(d) / simulation.NUM_CLIENTS
        for m, d in zip(mean, change, strict=True)
      )
      models[i] = tuple(w + u for w, u in zip(start, update, strict=True))
    simulation.assert_close(
      corrections.all_model(mean, initial), simulation.mean(models)
    )
