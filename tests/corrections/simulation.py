"""Rounds of a correction, with updates from nowhere, in float64."""

import numpy as np
import tensorflow as tf

NUM_DEVICES = 5
SHAPES = ((2, 3), (3,), ())


def weights(random):
  return tuple(random.normal(size=shape) for shape in SHAPES)


def mean(structures):
  return tuple(
    np.mean(parts, axis=0) for parts in zip(*structures, strict=True)
  )


def constants(structure):
  return tuple(tf.constant(w, tf.float64) for w in structure)


def rounds(correction, num_rounds=8, decay=0.8, seed=0):
  """Lets devices take part in turns, as `LearningProcess` does.

  Args:
    correction: The correction.
    num_rounds: The number of rounds.
    decay: The decay of the learning rate.
    seed: The seed of all random numbers.

  Yields:
    After each round the updates (by device), what was sent, the states of all
    devices, the server's state, the model *selected*, and the settings of the
    round.
  """
  random = np.random.RandomState(seed)
  selected = constants(weights(random))
  states = [correction.initial_state(selected)] * NUM_DEVICES
  server = correction.initial_server_state(selected)
  for t in range(num_rounds):
    participants = random.permutation(NUM_DEVICES)[: random.randint(1, 4)]
    learning_rate = tf.constant(0.1 * decay**t, tf.float64)
    num_steps = tf.constant(float(random.randint(1, 5)), tf.float64)
    sent = correction.broadcast_model(selected, server)
    message = correction.server_message(server)
    updates, messages = {}, []
    for i in participants:
      updates[i] = constants(weights(random))
      states[i], answer = correction.finish_device(
        message, states[i], updates[i], num_steps, learning_rate
      )
      messages.append(answer)
    mean_update = mean(updates.values())
    share = tf.constant(len(participants) / NUM_DEVICES, tf.float64)
    server = correction.update_server(
      server, mean_update, mean(messages) if messages[0] else (), share
    )
    selected = tuple(w + u for w, u in zip(sent, mean_update, strict=True))
    yield {
      'updates': updates,
      'sent': sent,
      'states': list(states),
      'server': server,
      'selected': selected,
      'num_steps': num_steps.numpy(),
      'learning_rate': learning_rate.numpy(),
    }


def assert_close(actual, expected):
  assert len(actual) == len(expected) == len(SHAPES)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)
