import gc

import computations
import tensorflow_federated as tff

from tff_debias import runtime as runtime_lib
from tff_debias.runtime import executor


def test_a_worker_frees_the_executors_that_are_dropped(monkeypatch):
  gc.collect()  # Those of other tests.
  freed, original = [], tff.framework.RemoteExecutorGrpcStub.dispose_executor

  def dispose_executor(self, request):
    freed.append(request.executor.id)
    return original(self, request)

  monkeypatch.setattr(
    tff.framework.RemoteExecutorGrpcStub, 'dispose_executor', dispose_executor
  )
  monkeypatch.setattr(executor.ExecutorFactory, '_MAX_EXECUTORS', 1)
  with runtime_lib.local_context(max_concurrency=1):
    for clients in ([1], [1, 2], [1, 2, 3], [1, 2, 3]):
      assert computations.total(clients) == sum(clients)
    gc.collect()
    assert [name.split('/')[0] for name in freed] == ['clients=1', 'clients=2']
    assert computations.total([1, 2, 3]) == 6
