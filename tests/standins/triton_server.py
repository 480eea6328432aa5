"""Triton's Python backend without Triton: its module `triton_python_backend_utils`, and what it calls a model with."""

import json
import queue
import threading
import types

from standins.pbtxt import read_pbtxt

FINAL = 1


class Tensor:
    def __init__(self, name, values):
        self._name, self._values = name, values

    def name(self):
        return self._name

    def as_numpy(self):
        return self._values


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, CANCELLED = (
        "internal",
        "invalid",
        "unavailable",
        "unsupported",
        "cancelled",
    )

    def __init__(self, message, code):
        self.message, self.code = message, code


class TritonModelException(Exception):  # noqa: N818
    pass


class InferenceResponse:
    def __init__(self, output_tensors, error=None):
        self.error = error
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}


class Metric:
    def __init__(self):
        self.value = 0.0

    def increment(self, value):
        assert value >= 0
        self.value += value

    def set(self, value):
        self.value = value


def make_server():
    """The module, with what it was told in ``logged`` and ``numbers``: metrics by their families' names and method."""
    server = types.ModuleType("triton_python_backend_utils")
    server.numbers, server.logged = {}, []

    class MetricFamily:
        COUNTER, GAUGE = "counter", "gauge"

        def __init__(self, name, description, kind):
            assert description
            assert name.endswith("_total") == (kind == self.COUNTER)  # as Prometheus has names
            self._name = name

        def Metric(self, labels):  # noqa: N802
            return server.numbers.setdefault((self._name, labels["method"]), Metric())

    server.Tensor, server.TritonError, server.InferenceResponse = Tensor, TritonError, InferenceResponse
    server.TritonModelException, server.MetricFamily = TritonModelException, MetricFamily
    server.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    server.Logger = types.SimpleNamespace(log_error=server.logged.append, log_warn=server.logged.append)
    return server


class Request:
    """A request, and the sender of its responses, which refuses what would be a use of freed memory in the real one."""

    def __init__(self, parameters=None, **tensors):
        self._parameters = parameters or {}
        self._tensors = [Tensor(name, values) for name, values in tensors.items()]
        self._sent = queue.Queue()
        self._over = False
        self.gone = threading.Event()
        self.looked_at = threading.Event()

    def inputs(self):
        return self._tensors

    def parameters(self):
        return json.dumps(self._parameters)

    def get_response_sender(self):
        return self

    def send(self, response=None, flags=0):
        assert not self._over, "a response after the last one"
        self._over = flags == FINAL
        self._sent.put((response, self._over))

    def is_cancelled(self):
        assert not self._over, "asked after the last response"
        self.looked_at.set()
        return self.gone.is_set()

    def next(self):
        """The next response, and whether it is the last."""
        return self._sent.get(timeout=20)

    def responses(self):
        """All of them, once the last has come."""
        found = []
        while True:
            response, last = self.next()
            found.append(response)
            if last:
                assert self._sent.empty()
                return found


def arguments(folder, **changes):
    """What a model in ``folder`` is initialised with."""
    fields = read_pbtxt((folder / "config.pbtxt").read_text())
    parameters = {one["key"][0]: {"string_value": one["value"][0]["string_value"][0]} for one in fields["parameters"]}
    return {
        "model_config": json.dumps({"parameters": parameters}),
        "model_repository": str(folder),
        "model_version": "1",
        "model_name": folder.name,
        "model_instance_name": f"{folder.name}_0_0",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        **changes,
    }
