"""Voice activity detection: how likely each 32 ms of a recording hold speech.

The network is Silero VAD v6.2 (github.com/snakers4/silero-vad, MIT: ``silero_vad.LICENSE``). Its weights are those of
``silero_vad_16k_op15.onnx`` in the package silero-vad 6.2.3, copied by `tools/silero_vad.py`; the computation is
written here anew and compared with that file in tests/engine/listening/test_vad.py.

A chunk of 512 samples at 16 kHz, behind the 64 samples before it: a Fourier transform stored as a convolution, four
convolutions, an LSTM cell and one output. What goes from chunk to chunk is the cell's state and those 64 samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.weights.safetensors.file import SafetensorsFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 16000
"""Hz of what it hears."""

CHUNK = 512
CHUNK_SECONDS = CHUNK / RATE

WEIGHTS = Path(__file__).with_name("silero_vad.safetensors")

_CONTEXT = 64  # samples before a chunk, and samples reflected behind it
_WINDOW, _HOP = 256, 128  # of the Fourier transform
_WIDTH = 128  # of the LSTM
_STRIDES = (1, 2, 2, 1)  # of the four convolutions
_AT_ONCE = 64
"""Chunks that are convolved together: two seconds."""


class VoiceDetector:
    """One stream of sound: `push` its samples in order. Streams do not share state."""

    def __init__(self) -> None:
        import numpy as np

        self._network = _network()
        self._context = np.zeros(_CONTEXT, np.float32)
        self._waiting = np.zeros(0, np.float32)
        self._hidden = np.zeros(_WIDTH, np.float32)
        self._cell = np.zeros(_WIDTH, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """``samples [n]``, mono float32 at 16 kHz, full scale 1. Returns the probability of speech, 0 to 1, of each
        chunk of 512 samples that they complete, ``[chunks]``. The cut into pushes changes nothing but rounding."""
        import numpy as np

        waiting = np.concatenate((self._waiting, samples))
        whole = len(waiting) // CHUNK * CHUNK
        self._waiting = waiting[whole:].copy()
        step = _AT_ONCE * CHUNK
        found = [self._probabilities(waiting[start : min(start + step, whole)]) for start in range(0, whole, step)]
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    def finish(self) -> NDArray[np.float32]:
        """The probability of the last samples, filled up with silence: ``[1]``, or ``[0]`` where none wait."""
        import numpy as np

        return self.push(np.zeros(-len(self._waiting) % CHUNK, np.float32))

    def _probabilities(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        joined = np.concatenate((self._context, samples))
        self._context = samples[-_CONTEXT:].copy()
        chunks = np.lib.stride_tricks.sliding_window_view(joined, _CONTEXT + CHUNK)[::CHUNK]
        features = _features(self._network, chunks)
        gates = features @ self._network["rnn.weight_ih"].T + self._network["rnn.bias"]
        outputs = np.empty((len(gates), _WIDTH), np.float32)
        for index, gate in enumerate(gates):
            outputs[index] = self._cell_step(gate)
        return _sigmoid(np.maximum(outputs, 0) @ self._network["output.weight"] + self._network["output.bias"])

    def _cell_step(self, gate: NDArray[np.float32]) -> NDArray[np.float32]:
        """One step of the LSTM; ``gate [512]`` is what its input adds to the gates input, forget, cell, output."""
        import numpy as np

        taken, forgotten, new, given = np.split(gate + self._network["rnn.weight_hh"] @ self._hidden, 4)
        self._cell = _sigmoid(forgotten) * self._cell + _sigmoid(taken) * np.tanh(new)
        self._hidden = _sigmoid(given) * np.tanh(self._cell)
        return self._hidden


def _features(network: Mapping[str, NDArray[np.float32]], chunks: NDArray[np.float32]) -> NDArray[np.float32]:
    """``chunks [n, 64 + 512]`` as what the LSTM is given, ``[n, 128]``."""
    import numpy as np

    padded = np.pad(chunks, ((0, 0), (0, _CONTEXT)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=1)[:, ::_HOP]  # [n, 4, 256]
    real, imaginary = np.split(windows @ network["stft.basis"].T, 2, axis=2)
    columns = np.sqrt(real * real + imaginary * imaginary)  # [n, 4, 129]
    for layer, stride in enumerate(_STRIDES):
        around = np.pad(columns, ((0, 0), (1, 1), (0, 0)))
        # [n, columns, channels, 3 taps]; the stored kernels are [out, channels, 3].
        taps = np.lib.stride_tricks.sliding_window_view(around, 3, axis=1)[:, ::stride]
        kernels = network[f"encoder.{layer}.weight"].reshape(-1, taps.shape[2] * 3)
        columns = taps.reshape(*taps.shape[:2], -1) @ kernels.T + network[f"encoder.{layer}.bias"]
        columns = np.maximum(columns, 0)
    last: NDArray[np.float32] = columns[:, 0]
    return last


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    with np.errstate(over="ignore"):  # exp(large) is inf, and its sigmoid 0
        return np.float32(1) / (np.float32(1) + np.exp(-values))


@cache
def _network() -> Mapping[str, NDArray[np.float32]]:
    with SafetensorsFile(WEIGHTS) as file:
        return {name: file.tensor(name).numpy().copy() for name in file.entries}
