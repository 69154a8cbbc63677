"""Reads and sets the weights and hyperparameters of a learning process."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import checks
from tff_debias import corrections
from tff_debias import method as method_lib
from tff_debias import models

State = tff.learning.templates.LearningAlgorithmState


def get_all_model_weights(state: State) -> models.ModelWeights:
  """The model *all* of a process built with `track_all`.

  Args:
    state: A state of the process, as `next` returned it.

  Returns:
    `tff.learning.models.ModelWeights` of NumPy arrays: the mean over all m
    clients of each one's newest w_i, and of the initial model for a client that
    never took part.

  Raises:
    ValueError: If the process does not keep the model *all*.
  """
  finalizer = state.finalizer
  if not finalizer['initial']:
    raise ValueError(
      'This process does not keep the model all: build it with track_all=True.'
    )
  weights = corrections.all_model(finalizer['means'][-1], finalizer['initial'])
  return models.ModelWeights(
    tuple(np.asarray(w, np.float32) for w in weights),
    state.global_model_weights.non_trainable,
  )


class _LearningProcess(tff.learning.templates.LearningProcess):
  """TFF's, whose `set_hparams` takes its values by name and checks them."""

  @property
  def set_hparams(self):
    """See base class. A `ValueError` names what is wrong."""
    return self._set_checked

  def _set_checked(self, state: State, hparams: Mapping[str, Any]) -> State:
    parameter = super().set_hparams.type_signature.parameter
    names = tff.structure.name_list(parameter.hparams)
    if not isinstance(hparams, Mapping) or set(hparams) != set(names):
      raise ValueError(
        f'The hyperparameters must be a mapping of {", ".join(names)}, got'
        f' {hparams!r}.'
      )
    values = collections.OrderedDict()
    for name in names:
      value = np.asarray(hparams[name])[()]
      # A learning rate of 0 trains nothing, and α = 0 divides by zero.
      checks.check_number(name, value, positive=name != 'weight_decay')
      values[name] = np.float32(value)
    return super().set_hparams(state, values)


def with_next(
  process: tff.learning.templates.LearningProcess, next_fn: tff.Computation
) -> tff.learning.templates.LearningProcess:
  """The process with another `next`, of the same state."""
  return _LearningProcess(
    process.initialize,
    next_fn,
    process.get_model_weights,
    process.set_model_weights,
    get_hparams_fn=process.get_hparams,
    set_hparams_fn=tff.learning.templates.LearningProcess.set_hparams.fget(
      process
    ),
  )


def build(
  method: method_lib.Method,
  initialize: tff.Computation,
  next_fn: tff.Computation,
) -> tff.learning.templates.LearningProcess:
  """The learning process of `initialize` and `next_fn`."""
  state_type = initialize.type_signature.result.member

  @tff.tensorflow.computation(state_type)
  def get_model_weights(state):
    return state.global_model_weights

  @tff.tensorflow.computation(state_type, state_type.global_model_weights)
  def set_model_weights(state, weights):
    finalizer = state.finalizer
    if method.track_all:
      # `initial` is the model of clients that never took part. It follows the
      # model that is set, until a client has taken part.
      share = finalizer['means'][-1][-1]
      initial = tf.nest.map_structure(
        lambda new, old: tf.where(share > 0, old, new),
        weights.trainable,
        finalizer['initial'],
      )
      finalizer = collections.OrderedDict(finalizer, initial=initial)
    return state._replace(global_model_weights=weights, finalizer=finalizer)

  @tff.tensorflow.computation(state_type)
  def get_hparams(state):
    return state.client_work['hparams']

  @tff.tensorflow.computation(state_type, state_type.client_work.hparams)
  def set_hparams(state, hparams):
    return state._replace(
      client_work=collections.OrderedDict(state.client_work, hparams=hparams)
    )

  return _LearningProcess(
    initialize,
    next_fn,
    get_model_weights,
    set_model_weights,
    get_hparams_fn=get_hparams,
    set_hparams_fn=set_hparams,
  )
