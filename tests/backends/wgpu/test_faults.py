"""What goes wrong with a device: the request's error and no more, or the engine says that it is gone."""

from __future__ import annotations

import pytest

from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import LludaError, OutOfMemory
from lluda.models.causal_lm import CausalLM
from tests.backends.wgpu.test_decode import DENSE, config_of, parameters, prompt, wgpu_backend
from tests.engine.test_engine import engine_of, ids_of, request

LONG = SamplingParams(temperature=0, max_tokens=900)
SHORT = SamplingParams(temperature=0, max_tokens=6)


def engine_on(gpu):
    backend = wgpu_backend(gpu)
    return engine_of(CausalLM(config_of(DENSE), parameters(DENSE, backend), backend))


def ask(engine, ids, params=SHORT):
    return engine.submit(request(ids, params, reuse="none"), capacity=1000)


@pytest.fixture
def own_gpu(adapter):
    from lluda.backends.wgpu.gpu import Gpu

    return Gpu(adapter, checked=True)


def test_the_request_after_one_without_memory_is_answered(own_gpu, monkeypatch):
    import wgpu

    engine = engine_on(own_gpu)
    expected = ids_of(ask(engine, prompt(20)))
    create, refused = own_gpu._device.create_buffer, []

    def refuse(**wanted):
        if len(refused) < 3:  # the third of the buffers that hold more keys
            refused.append(wanted)
            if len(refused) == 3:
                raise wgpu.GPUOutOfMemoryError("no")
        return create(**wanted)

    running = ask(engine, prompt(20), LONG)
    next(running)
    monkeypatch.setattr(own_gpu._device, "create_buffer", refuse)
    with pytest.raises(OutOfMemory, match=r"the device's memory ran out during this request"):
        list(ask(engine, prompt(60, 1), LONG))
    assert len(refused) == 3
    running.close()
    assert ids_of(ask(engine, prompt(20))) == expected
    assert engine.error is None
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_device_that_is_lost_ends_the_engine(own_gpu):
    engine = engine_on(own_gpu)
    running = ask(engine, prompt(20), LONG)
    next(running)
    with own_gpu.lock:
        own_gpu._device.destroy()
    with pytest.raises(Exception, match=r"lost|does not answer"):
        list(running)
    with pytest.raises(LludaError, match="the engine stopped at an error"):
        ask(engine, [1])
    engine.close()
    engine.check_integrity()


def test_nothing_is_submitted_to_a_device_that_was_found_lost(own_gpu):
    encoder = own_gpu.encoder()
    commands = encoder.finish()
    own_gpu._device.destroy()
    assert own_gpu.is_lost()
    with pytest.raises(RuntimeError, match=r"llvmpipe.* does not answer any more: nothing can be submitted"):
        own_gpu.submit(commands)  # wgpu itself would end the process
