"""Rounds of a correction, with updates from nowhere, in float64."""

import numpy as np
import tensorflow as tf

from tff_debias import corrections

NUM_CLIENTS = 5
SHAPES = ((2, 3), (3,), ())


def weights(random):
  return tuple(random.normal(size=shape) for shape in SHAPES)


def mean(structures):
  return tuple(
    np.mean(parts, axis=0) for parts in zip(*structures, strict=True)
  )


def constants(structure):
  return tuple(tf.constant(w, tf.float64) for w in structure)


def work(update, num_steps, learning_rate):
  """The local work of an update; its start is not used by our corrections."""
  return corrections.LocalWork((), update, num_steps, learning_rate)


def rounds(correction, num_rounds=8, decay=0.8, seed=0, equal_steps=False):
  """Lets clients take part in turns, as `algorithm` does.

  Args:
    correction: The correction.
    num_rounds: The number of rounds.
    decay: The decay of the learning rate.
    seed: The seed of all random numbers.
    equal_steps: Whether the participants of a round take as many steps.

  Yields:
    After each round the updates and steps (by client), what was sent, the
    states of all clients, the server's mean, the model *selected*, and the
    learning rate of the round.
  """
  random = np.random.RandomState(seed)
  selected = constants(weights(random))
  states = [correction.initial_state(selected)] * NUM_CLIENTS
  server = correction.initial_state(selected)
  for t in range(num_rounds):
    participants = random.permutation(NUM_CLIENTS)[: random.randint(1, 4)]
    learning_rate = tf.constant(0.1 * decay**t, tf.float64)
    sent = correction.broadcast_model(selected, server)
    broadcast_mean = server if correction.is_broadcast else ()
    updates, steps, changes = {}, {}, []
    num_steps = float(random.randint(1, 5))
    for i in participants:
      updates[i] = constants(weights(random))
      steps[i] = num_steps if equal_steps else float(random.randint(1, 5))
      changes.append(
        correction.state_change(
          states[i],
          broadcast_mean,
          work(updates[i], tf.constant(steps[i], tf.float64), learning_rate),
        )
      )
      states[i] = tuple(
        s + d for s, d in zip(states[i], changes[-1], strict=True)
      )
    mean_update = mean(updates.values())
    if correction.change_is_sent:
      change = mean(changes)
    else:
      mean_steps = tf.constant(np.mean(list(steps.values())), tf.float64)
      change = correction.state_change(
        server, broadcast_mean, work(mean_update, mean_steps, learning_rate)
      )
    share = len(participants) / NUM_CLIENTS
    server = tuple(s + share * d for s, d in zip(server, change, strict=True))
    selected = tuple(w + u for w, u in zip(sent, mean_update, strict=True))
    yield {
      'updates': updates,
      'steps': steps,
      'sent': sent,
      'states': list(states),
      'server': server,
      'selected': selected,
      'learning_rate': learning_rate.numpy(),
    }


def assert_close(actual, expected):
  assert len(actual) == len(expected) == len(SHAPES)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)


def assert_starts_at_zero(correction):
  weights = (tf.ones([2, 3]), tf.constant(4.0))
  state = correction.initial_state(weights)
  assert [(s.shape, s.dtype) for s in state] == [
    (w.shape, w.dtype) for w in weights
  ]
  assert not any(map(np.any, state))
