"""The personalized model of one client, for use without this package."""

from tff_debias.export.cases import Case
from tff_debias.export.cases import register
from tff_debias.export.checks import ExportError
from tff_debias.export.files import Export
from tff_debias.export.files import export_personalized_model
from tff_debias.export.keras import personalized_keras_model
from tff_debias.export.verification import TOLERANCE
