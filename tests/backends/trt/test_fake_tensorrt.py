"""The stand-in of TensorRT keeps TensorRT's rules: each is broken once, and seen."""

import numpy as np
import pytest

from coupled_sampling.errors import ProviderError
from standins.fake_cuda import RuleBroken
from standins.trt_bundles import Machine, some_tokens, starts, write_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("trt") / "toy")


class TestTheStandInKeepsTheRules:
    """Negative controls: each rule, broken behind the back of the provider."""

    @pytest.fixture
    def machine(self):
        return Machine()

    @pytest.fixture
    def provider(self, machine, bundle):
        provider = machine.open(bundle)
        provider.forward(some_tokens(1, 4), starts(0))
        return provider

    def context(self, provider):
        return next(iter(provider._runner._prepared.values())).context._context

    def test_an_address_that_was_never_set(self, provider):
        context = self.context(provider)
        del context.addresses["logits"]
        with pytest.raises(RuleBroken, match="before logits had an address"):
            context.execute_async_v3(provider.stream.handle)

    def test_a_shape_outside_the_profile(self, provider):
        context = self.context(provider)
        assert not context.set_input_shape("input_ids", (1, 17))
        assert not context.set_input_shape("input_ids", (4, 4))
        assert context.set_input_shape("input_ids", (3, 4))

    def test_memory_that_was_freed(self, provider):
        provider._runner.memories["logits"].free()
        with pytest.raises(RuleBroken, match="tensor logits: use after free"):
            self.context(provider).execute_async_v3(provider.stream.handle)

    def test_a_captured_graph_whose_memory_was_freed(self, provider):
        provider._runner.memories["logits"].free()
        with pytest.raises(ProviderError, match="was freed; capture it again"):
            provider.forward(some_tokens(1, 4), starts(0))

    def test_a_captured_graph_whose_context_was_changed(self, provider):
        context = self.context(provider)
        context.set_tensor_address("logits", context.addresses["logits"])
        with pytest.raises(RuleBroken, match="context of a captured graph was changed"):
            provider.forward(some_tokens(1, 4), starts(0))

    def test_a_capture_without_a_run_before_it(self, provider):
        context = self.context(provider)
        context.set_input_shape("input_ids", (1, 4))
        with pytest.raises(RuleBroken, match="run once, then capture"), provider.stream.capture():
            context.execute_async_v3(provider.stream.handle)

    def test_present_elsewhere_than_past(self, provider):
        context = self.context(provider)
        context.set_tensor_address("present.0.key", context.addresses["present.0.value"])
        with pytest.raises(RuleBroken, match=r"present\.0\.key is not at the address of past_key_values\.0\.key"):
            context.execute_async_v3(provider.stream.handle)

    def test_a_write_beyond_the_cache(self, provider):
        provider._runner.host["start"].values[:] = 41
        provider.stream.launch(next(iter(provider._runner._prepared.values())).graph)
        with pytest.raises(RuleBroken, match="written beyond its end"):
            provider.stream.synchronize()

    def test_another_stream(self, provider, machine):
        _, other = machine.cuda.cuStreamCreate(1)
        context = self.context(provider)
        context.execute_async_v3(provider.stream.handle)
        with pytest.raises(RuleBroken, match="wrong stream"):
            context.execute_async_v3(other)

    def test_logits_read_before_the_stream_was_waited_for(self, provider):
        """What a provider without its last wait would return is rubbish."""
        waits = provider.stream.synchronize
        waits()
        provider.stream.launch(next(iter(provider._runner._prepared.values())).graph)
        with pytest.raises(ProviderError, match="synchronise its stream first"):
            provider._runner.host["logits"].values  # noqa: B018
        assert (provider._runner.host["logits"]._values.view(np.uint8)[:16] == 0xFF).all()
        waits()

    def test_scratch_memory_that_is_too_small(self, provider):
        context = self.context(provider)
        context.set_device_memory(provider.engine.scratch.address, 10)
        with pytest.raises(RuleBroken, match="or too little"):
            context.execute_async_v3(provider.stream.handle)

    def test_kv_length_outside_its_profile(self, bundle):
        provider = Machine().open(bundle, columns=(16,))
        provider.forward(some_tokens(1, 4), starts(0))
        next(iter(provider._runner._prepared.values())).columns.values[0] = 8
        with pytest.raises(RuleBroken, match="kv_length is 8, outside its profile, 16 to 44"):
            self.context(provider).execute_async_v3(provider.stream.handle)
