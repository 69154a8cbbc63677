"""Corrections R_i: what a device adds to its gradient to remove the bias."""

from tff_debias.corrections.base import Correction
from tff_debias.corrections.base import Weights
from tff_debias.corrections.dyn import Dyn
from tff_debias.corrections.none import NoCorrection
from tff_debias.corrections.scaf import Scaf
