"""Personalizations T_i: how a device makes the meta-model its own."""

from tff_debias.personalizations.base import Personalization
from tff_debias.personalizations.base import Result
from tff_debias.personalizations.base import clip
from tff_debias.personalizations.base import gradient
from tff_debias.personalizations.maml import Maml
from tff_debias.personalizations.none import NoPersonalization
from tff_debias.personalizations.proto import Proto
