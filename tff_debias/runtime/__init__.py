"""Runs TFF's computations in this process, or on TFF's workers."""

from tff_debias.runtime.contexts import AsyncLocalContext
from tff_debias.runtime.contexts import LocalContext
from tff_debias.runtime.contexts import ProgramContext
from tff_debias.runtime.contexts import local_context
from tff_debias.runtime.contexts import start_local_context
from tff_debias.runtime.errors import ComputationError
from tff_debias.runtime.remote import remote_context
