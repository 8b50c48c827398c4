"""mistral.rs (candle underneath) on the same safetensors files: a third reference, in another language and over another
tensor library.

It answers requests and shows no stage: of each greedy token it gives the log-probabilities of the most likely ids.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lluda.config.model import ModelConfig
from lluda.convert.mistralrs_folder import ARCHITECTURES, mistralrs_folder
from lluda.errors import LludaError, UnsupportedModel
from lluda.evaluation.trace import Continuation
from lluda.extras import missing

TOP = 20
"""Ids of each position whose log-probabilities are asked for: the most that it gives."""


@dataclass(frozen=True, slots=True)
class LikeliestIds:
    """A greedy continuation: at each position before one of its ``tokens`` the ``ids [tokens, TOP]`` of the largest
    ``log_probabilities [tokens, TOP]``, float32, falling."""

    tokens: tuple[int, ...]
    ids: Tensor
    log_probabilities: Tensor

    def continuation(self) -> Continuation:
        """Its tokens, and by how much each led the second."""
        margins = (self.log_probabilities[:, 0] - self.log_probabilities[:, 1]).tolist()
        return Continuation(self.tokens, tuple(margins))


class MistralRsReference:
    """One model, in F32, which holds BF16 weights exactly; keys and values too."""

    name = "mistralrs"

    def __init__(self, path: Path, config: ModelConfig) -> None:
        """Errors as `require_mistralrs`; UnsupportedModel also where mistral.rs refuses the model."""
        mistralrs = require_mistralrs(path, config)
        # Keys and values are F16 otherwise.
        os.environ["MISTRALRS_CPU_KV_F32"] = "1"
        self._folder = tempfile.TemporaryDirectory(prefix="lluda-mistralrs-")
        opened = mistralrs_folder(path, config, Path(self._folder.name))
        which = mistralrs.Which.Plain(
            model_id=str(opened),
            arch=getattr(mistralrs.Architecture, ARCHITECTURES[config.model_type]),
            dtype=mistralrs.ModelDType.F32,
        )
        self._package = mistralrs
        try:
            self._runner = mistralrs.Runner(which, max_seqs=1, prefix_cache_n=0, token_source="none")
        except (ValueError, RuntimeError) as error:
            raise UnsupportedModel(f"{path}: mistralrs cannot load it: {error}") from error

    def continue_greedily(self, ids: Sequence[int], count: int) -> LikeliestIds:
        """``count`` tokens after ``ids``. LludaError: it answers with others than were asked for."""
        request = self._package.ChatCompletionRequest(
            messages=[{"role": "user", "content": " ".join(f"t{token}" for token in ids)}],
            model="default",
            max_tokens=count,
            temperature=0.0,
            ignore_eos=True,
            logprobs=True,
            top_logprobs=TOP,
        )
        response = self._runner.send_chat_completion_request(request)
        places = response.choices[0].logprobs.content
        read, wrote = response.usage.prompt_tokens, len(places)
        if (read, wrote) != (len(ids), count):
            raise LludaError(f"mistralrs read {read} tokens for {len(ids)} and wrote {wrote} for {count}")
        tops = [sorted(place.top_logprobs, key=lambda top: -float(top.logprob)) for place in places]
        return LikeliestIds(
            tuple(int(top[0].token) for top in tops),
            torch.tensor([[int(one.token) for one in top] for top in tops]),
            torch.tensor([[float(one.logprob) for one in top] for top in tops]),
        )


def require_mistralrs(path: Path, config: ModelConfig) -> Any:
    """The package, for a model it can read.

    Raises:
        UnsupportedModel: a .gguf file, or a model type it is not asked for.
        MissingDependency: it is not installed.
    """
    if path.is_file() or config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"{path}: mistralrs is asked for safetensors folders of {known}; leave --reference out")
    try:
        import mistralrs
    except ImportError as error:
        raise missing("the reference", "mistralrs", reason=f"cannot be imported ({error})") from None
    return mistralrs
