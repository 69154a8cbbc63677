"""TFF's native runtime in a worker process of our own."""

from tff_debias.runtime.contexts import ProgramContext
from tff_debias.runtime.contexts import local_context
from tff_debias.runtime.contexts import remote_context
from tff_debias.runtime.contexts import start_local_context
from tff_debias.runtime.errors import ComputationError
from tff_debias.runtime.worker import Worker
from tff_debias.runtime.worker import WorkerError
