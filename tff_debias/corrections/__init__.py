"""Corrections R_i: what a client adds to its gradient to remove the bias."""

from tff_debias.corrections.base import Correction
from tff_debias.corrections.base import KeptState
from tff_debias.corrections.base import LocalWork
from tff_debias.corrections.base import State
from tff_debias.corrections.base import Weights
from tff_debias.corrections.dyn import Dyn
from tff_debias.corrections.newest import NewestModel
from tff_debias.corrections.newest import all_model
from tff_debias.corrections.none import NoCorrection
from tff_debias.corrections.prox import Prox
from tff_debias.corrections.scaf import Scaf
