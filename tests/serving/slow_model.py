"""A model whose calls wait until a test lets them go on."""

import threading
import time
import types

METRICS = types.SimpleNamespace(batch=lambda *_: None)


class Model:
    """Doubles numbers; each call waits until it may go on, and a negative number fails it."""

    def __init__(self, batches=True, answer=lambda x: 2 * x):
        self.signature = types.SimpleNamespace(name='double', batches=batches, inputs={'x': None})
        self.signatures = {'double': self.signature}
        self.calls, self.may_run, self._answer = [], threading.Semaphore(0), answer

    def run(self, signature, inputs):
        self.calls.append(inputs['x'].tolist())
        self.may_run.acquire()
        if (inputs['x'] < 0).any():
            raise ValueError(f'negative: {inputs["x"].tolist()}')
        return {'y': self._answer(inputs['x'])}


def wait_for_calls(model, count):
    end = time.monotonic() + 20
    while len(model.calls) < count:
        assert time.monotonic() < end
        time.sleep(0.002)
