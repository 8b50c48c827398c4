"""Copies the weights of Silero VAD v6.2 out of its ONNX file into ``engine/listening/silero_vad.safetensors``.

``pip download --no-deps silero-vad==6.2.3``, unpack the wheel, ``pip install onnx onnxruntime`` (into an environment of
their own), then ``python -m tools.silero_vad silero_vad/data/silero_vad_16k_op15.onnx``. The package's
silero_vad_16k.safetensors is an older model: 98 % agreement.

The same run writes what ONNX Runtime finds in `sample_sound` to ``tests/data/silero_vad.json``, so that the tests need
no ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lluda.convert.safetensors_writer import NewTensor, write_safetensors
from lluda.engine.listening.vad import CHUNK, RATE, WEIGHTS

FOUND = Path(__file__).parents[1] / "tests/data/silero_vad.json"

_NAMES = {
    "model.stft.forward_basis_buffer": "stft.basis",
    **{
        f"model.encoder.{layer}.reparam_conv.{kind}": f"encoder.{layer}.{kind}"
        for layer in range(4)
        for kind in ("weight", "bias")
    },
    "model.decoder.rnn.weight_ih": "rnn.weight_ih",
    "model.decoder.rnn.weight_hh": "rnn.weight_hh",
    "model.decoder.decoder.2.weight": "output.weight",
    "model.decoder.decoder.2.bias": "output.bias",
}


def sample_sound() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Eight seconds at 16 kHz: silence, noise, a tone, and pulses at a changing pitch through changing formants, which
    the network takes for speech."""
    random = np.random.default_rng(1)
    times = np.arange(8 * RATE) / RATE
    sound = random.normal(0, 0.001, len(times))
    sound[RATE : 2 * RATE] += random.normal(0, 0.05, RATE)
    sound[2 * RATE : 3 * RATE] += 0.2 * np.sin(2 * np.pi * 440 * times[:RATE])
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * times)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = np.zeros(len(times))
    for harmonic in range(1, 30):
        hertz = harmonic * pitch
        first = 500 + 250 * np.sin(2 * np.pi * 2.1 * times)
        second = 1500 + 600 * np.sin(2 * np.pi * 1.3 * times + 1)
        level = np.exp(-(((hertz - first) / 120) ** 2)) + 0.5 * np.exp(-(((hertz - second) / 180) ** 2))
        voice += level * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 3 * times) + 0.5, 0, 1)
    spoken = (times > 3.5) & (times < 7)
    return np.asarray(sound + 0.15 * voice * syllables * spoken, np.float32)


def onnx_probabilities(path: Path, sound: np.ndarray[Any, np.dtype[np.float32]]) -> list[float]:
    """What ONNX Runtime finds, chunk by chunk."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    found: list[float] = []
    for start in range(0, len(sound) - CHUNK + 1, CHUNK):
        chunk = np.concatenate((context, sound[start : start + CHUNK]))
        given = {"input": chunk[None], "state": state, "sr": np.array(RATE, np.int64)}
        (probability, state) = session.run(None, given)
        context = chunk[-64:]
        found.append(float(probability[0, 0]))
    return found


def read_weights(path: Path) -> Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The network's weights by the names used here. The LSTM's two biases are only ever added: one tensor."""
    import onnx
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    weights = {name: stored[source] for source, name in _NAMES.items()}
    weights["rnn.bias"] = stored["model.decoder.rnn.bias_ih"] + stored["model.decoder.rnn.bias_hh"]
    weights["stft.basis"] = weights["stft.basis"][:, 0]
    weights["output.weight"] = weights["output.weight"].reshape(-1)
    return {name: np.ascontiguousarray(values, np.float32) for name, values in weights.items()}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="silero_vad_16k_op15.onnx")
    path = parser.parse_args().onnx
    weights = read_weights(path)
    tensors = [NewTensor(name, values.shape, "F32") for name, values in weights.items()]
    metadata = {"source": "Silero VAD v6.2, silero-vad 6.2.3, silero_vad_16k_op15.onnx", "license": "MIT"}
    write_safetensors(WEIGHTS, tensors, lambda tensor: [memoryview(weights[tensor.name]).cast("B")], metadata=metadata)
    found = [round(value, 6) for value in onnx_probabilities(path, sample_sound())]
    FOUND.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
