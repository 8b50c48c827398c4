"""Smart Turn v3: a small network that hears whether somebody has finished speaking.

github.com/pipecat-ai/smart-turn, BSD-2; ``smart-turn-v3.2-cpu.onnx`` is in the package pipecat-ai. It hears the last
8 s of a turn, up to the pause behind it, as Whisper's log-mel features.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.config.audio import RELEASED_MEL
from lluda.engine.listening.vad import RATE
from lluda.errors import CorruptFile, MissingDependency, ModelNotFound
from lluda.inputs.media.audio_features import log_mel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEARD = 8 * RATE
"""Samples that it hears."""

_MEL = replace(RELEASED_MEL, num_mel_bins=80)
_FRAMES = HEARD // _MEL.hop_length
_LEAST_VARIANCE = 1e-7


class SmartTurn:
    """The network of one file. Any thread may ask it.

    MissingDependency: no onnxruntime. ModelNotFound, CorruptFile: no file, or none of this network.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingDependency("Smart Turn needs ONNX Runtime: pip install onnxruntime") from None
        if not Path(file).is_file():
            raise ModelNotFound(f"{file} is no file; smart-turn-v3.2-cpu.onnx is in the package pipecat-ai")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # beside the threads of the model
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CorruptFile(file, f"ONNX Runtime cannot load it: {error}") from None
        shapes = [(one.name, *one.shape[1:]) for one in (*self._session.get_inputs(), *self._session.get_outputs())]
        if shapes != [("input_features", _MEL.num_mel_bins, _FRAMES), ("logits", 1)]:
            raise CorruptFile(file, f"no Smart Turn v3: it takes and gives {shapes}")

    def probability(self, samples: NDArray[np.float32]) -> float:
        """How likely the turn is over: ``samples [n]``, mono float32 at 16 kHz, the turn until its pause."""
        (found,) = self._session.run(None, {"input_features": features(samples)[None]})
        return float(found[0, 0])


def features(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[80, 800]``: the last 8 s, behind silence where there are fewer, with mean 0 and variance 1, as log-mel."""
    import numpy as np

    heard = samples[-HEARD:]
    heard = np.pad(heard, (HEARD - len(heard), 0))
    normal = (heard - heard.mean()) / np.sqrt(heard.var() + np.float32(_LEAST_VARIANCE))
    return np.ascontiguousarray(log_mel([normal], _MEL).T)
