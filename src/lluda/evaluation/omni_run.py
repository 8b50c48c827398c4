"""Runs an Omni validation: each component of lluda, then of transformers, on what lluda's component before it made.

So an error is seen in the component where it arises, and one component of one side is in memory at a time.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from lluda import __version__
from lluda.engine.frames import SpeechParams
from lluda.engine.loading import LoadOptions, ModelFiles
from lluda.engine.media import PreparedMedia
from lluda.engine.memory_plan import DTYPE_BYTES
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling_params import SamplingParams
from lluda.engine.talker_prompt import CapturedHiddenStates
from lluda.errors import InvalidRequest, LimitExceeded, OutOfMemory
from lluda.evaluation.omni_network import OmniNetwork, position_rows
from lluda.evaluation.omni_validation import (
    COMPONENTS,
    SPEAKING,
    ComponentParity,
    OmniRequest,
    OmniValidation,
    require_components,
)
from lluda.evaluation.omni_voice import Heard, OmniVoice, Speech
from lluda.evaluation.parity import GreedyParity, StageParity, compare_greedy, compare_traces
from lluda.evaluation.trace import Continuation, Recorder, Trace, continue_greedily, let_go, trace
from lluda.evaluation.transformers_omni import TransformersOmni, widened
from lluda.evaluation.transformers_voice import ReferenceVoice, VoiceTrace
from lluda.evaluation.validation import TOLERANCES
from lluda.inputs.media.audio_file import audio_blocks
from lluda.inputs.media.image_file import read_image
from lluda.models.build import all_parameters
from lluda.models.vision_encoder import VisionOutput

Note = Callable[[str], None]
Stages = dict[str, Tensor]

_ALONE = "each recording is run alone: transformers' rows of one depend on what shares its batch (spec section 3.2)"
_AUDIO_CONFIG = "the talker's config is given n_window, for which transformers 5.23 raises (spec section 6.2)"
_OWN_SOUND = "a video heard too keeps its positions in the talker; transformers' generate tells only its thinker of it"
_LAST_TOKEN = "the last token of an answer that its limit cut off is spoken too; transformers drops it (spec 6.2)"
_WHOLE = "one forward, not chunked_decode, which loses 555 samples at every joint (spec section 8.1)"


def validate_omni(
    files: ModelFiles, options: LoadOptions, request: OmniRequest, note: Note = lambda _: None
) -> OmniValidation:
    """Run and compare; ``options`` say how lluda is loaded, ``note`` is told what begins.

    Raises:
        InvalidRequest: a component that is not there, or that the input does not reach.
        LimitExceeded, OutOfMemory: the prompt does not fit the context, or a component the memory.
        MissingDependency, UnsupportedModel, LludaError: the reference cannot be had, or there is nothing to compare.
    """
    assert files.config.omni is not None
    require_components(request.only, files.config.omni.speech is not None)
    reference = TransformersOmni(files.path, OmniNetwork(files, options).dtype, float64=request.float64)
    return _Run(OmniNetwork(files, options), reference, request, note).validation()


@dataclass(slots=True)
class _Made:
    """What lluda's components made so far, for those after them."""

    media: list[PreparedMedia]
    heard: Sequence[Tensor | None]
    seen: Sequence[VisionOutput | None]


class _Run:
    """The steps of one validation and the time each took."""

    def __init__(self, network: OmniNetwork, reference: TransformersOmni, request: OmniRequest, note: Note) -> None:
        self.network, self.reference, self.request, self.note = network, reference, request, note
        self.tolerance = TOLERANCES[network.dtype]
        self.seconds: dict[str, float] = {}
        self.components: list[ComponentParity] = []

    def validation(self) -> OmniValidation:
        network, request = self.network, self.request
        media = network.prepare(request.given)
        none: list[None] = [None] * len(media)
        made = _Made(media, none, none)
        wanted = self._wanted()
        speaks = [name for name in ("talker", "code_predictor") if name in wanted]
        thinks = "thinker" in wanted or bool(speaks and media)
        if request.given.hears and ("audio" in wanted or thinks):
            self._audio(made, judge="audio" in wanted)
        if request.given.sees and ("vision" in wanted or thinks):
            self._vision(made, judge="vision" in wanted)
        prompt, heard = None, None
        if thinks or speaks:
            prompt = network.prompt(request.given, media, made.heard, made.seen)
            self._require_context(prompt)
            heard = Heard(prompt, request.given.spoken, torch.empty(0))
            if thinks:
                heard = self._thinker(prompt, made, judge="thinker" in wanted)
        codes = self._voice(heard, made, speaks) if heard and speaks else None
        if "code2wav" in wanted:
            self._code2wav(codes if codes is not None and len(codes) else self._random_codes())
        return OmniValidation(
            model=_describe(network.files),
            request=request,
            dtype=network.dtype,
            backend=network.backend.describe(),
            tolerance=self.tolerance,
            rows=len(prompt) if prompt else 0,
            components=tuple(self.components),
            versions={
                "lluda": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "transformers": self.reference.version,
            },
            seconds=self.seconds,
        )

    def _wanted(self) -> tuple[str, ...]:
        given, omni = self.request.given, self.network.omni
        reached = {"audio": given.hears, "vision": given.sees}
        missing = [name for name in self.request.only if not reached.get(name, True)]
        if missing:
            raise InvalidRequest(f"the input gives the {missing[0]} encoder nothing; add --audio, --image or --video")
        present = [name for name in COMPONENTS if omni.speech or name not in SPEAKING]
        return self.request.only or tuple(name for name in present if reached.get(name, True))

    def _audio(self, made: _Made, *, judge: bool) -> None:
        with self._timed("audio"):
            seen = Recorder()
            for medium in made.media:
                if medium.features is not None:
                    seen("features", torch.tensor(medium.features))
            self._require_memory("audio")
            made.heard = self.network.hear(made.media, seen if judge else None)
            if judge:
                features = self.reference.features([self._samples(index) for index in self._heard_media(made)])
                parity = self._compare(seen.stages, self.reference.hear(made.media), {"features": features})
                self.components.append(ComponentParity("audio", self.network.dtype, parity, None, (_ALONE,)))

    def _heard_media(self, made: _Made) -> list[int]:
        return [index for index, medium in enumerate(made.media) if medium.features is not None]

    def _samples(self, index: int) -> Any:
        part = self.request.given.media[index]
        blocks = audio_blocks(part.source, part.options.get("sampling_rate"), where=part.where)
        return np.concatenate(list(blocks))

    def _vision(self, made: _Made, *, judge: bool) -> None:
        with self._timed("vision"):
            self._require_memory("vision")
            seen = Recorder()
            made.seen = self.network.see(made.media, seen if judge else None)
            if judge:
                pixels = self._pixels()
                for index in self._pictures():
                    patches = made.media[index].patches
                    assert patches is not None
                    seen("pixels", patches.values)
                parity = self._compare(seen.stages, self.reference.see(made.media), pixels)
                self.components.append(ComponentParity("vision", self.network.dtype, parity))

    def _pictures(self) -> list[int]:
        return [index for index, part in enumerate(self.request.given.media) if part.kind == "image"]

    def _pixels(self) -> Stages:
        """Patches of pictures as transformers' processor makes them (its processor of videos needs torchvision)."""
        parts = [self.request.given.media[index] for index in self._pictures()]
        pictures = [read_image(part.source, where=part.where) for part in parts]
        return {"pixels": self.reference.pixels(pictures, self.network.vision_input)} if pictures else {}

    def _thinker(self, prompt: PromptRows, made: _Made, *, judge: bool) -> Heard:
        network, request = self.network, self.request
        speech, ids = network.omni.speech, list(prompt.ids)
        media = CapturedHiddenStates(prompt, speech.talker.accept_hidden_layer) if speech else None
        with self._timed("thinker"):
            self._require_memory("thinker")
            ours = network.thinker(prompt, media)
            seen = trace(ours, ids, request.rows_per_step if judge else len(ids))
            tokens = continue_greedily(ours, ids, request.greedy)
            del ours
            let_go()
            if judge:
                self._judge_thinker(prompt, made, dict(seen.stages), tokens)
        rows = [media.hidden[row] for row in media.rows] if media else []
        hidden = torch.stack(rows).cpu() if rows else torch.empty(0)
        return Heard(prompt, self._answer(tokens), hidden)

    def _judge_thinker(self, prompt: PromptRows, made: _Made, stages: Stages, tokens: Continuation) -> None:
        ids = list(prompt.ids)
        reference = self.reference.thinker(prompt)
        runs = [dict(trace(reference, ids, len(ids)).stages)]
        theirs = continue_greedily(reference, ids, self.request.greedy)
        if self.request.float64:
            with widened(reference.module):
                runs.append(dict(trace(reference, ids, len(ids)).stages))
        del reference
        let_go()
        positions = {"positions": _rounded(self.reference.positions(ids, made.media))}
        stages |= {"positions": _rounded(position_rows(prompt))}
        parity = self._compare(stages, iter(runs), positions)
        greedy = compare_greedy(tokens, theirs) if self.request.greedy else None
        self.components.append(ComponentParity("thinker", self.network.dtype, parity, greedy))

    def _answer(self, tokens: Continuation) -> tuple[int, ...]:
        """The ids before the one that ends the answer; what was made up where that is none."""
        found: list[int] = []
        for token in tokens.tokens:
            if token in self.network.files.eos_ids:
                break
            found.append(token)
        return tuple(found) or self.request.given.spoken

    def _voice(self, heard: Heard, made: _Made, judged: Sequence[str]) -> Tensor:
        request = self.request
        params = SpeechParams(sampling=SamplingParams(temperature=0.0), max_frames=request.frames).with_defaults(
            self.network.files.generation_config
        )
        with self._timed("talker"):
            self._require_memory("talker")
            speech = OmniVoice(self.network, heard, request.speaker).speak(params)
            let_go()
            if not len(speech.codes):
                return speech.codes
            runs = list(
                ReferenceVoice(self.reference).runs(heard, made.media, speech, request.speaker, params.sampling)
            )
            let_go()
            compared = {"talker": self._talker(speech, runs, made), "code_predictor": self._predictor(speech, runs)}
            self.components += [compared[name] for name in judged]
        return speech.codes.T

    def _talker(self, speech: Speech, runs: Sequence[VoiceTrace], made: _Made) -> ComponentParity:
        own_sound = any(part.kind == "video" and part.options.get("use_audio") for part in self.request.given.media)
        corrections = (_LAST_TOKEN, *[_AUDIO_CONFIG] * bool(made.media), *[_OWN_SOUND] * own_sound)
        ours, theirs = (
            dict(stages) | {"positions": _rounded(stages["positions"])} for stages in (speech.talker, runs[0].talker)
        )
        truth = [dict(run.talker) | {"positions": theirs["positions"]} for run in runs[1:]]
        parity = self._compare(ours, iter([theirs, *truth]))
        greedy = _equal_codes(speech.codes[:, :1], runs[0].choices[:, :1])
        return ComponentParity("talker", self.network.dtype, parity, greedy, corrections)

    def _predictor(self, speech: Speech, runs: Sequence[VoiceTrace]) -> ComponentParity:
        parity = self._compare(speech.predictor, (run.predictor for run in runs))
        greedy = _equal_codes(speech.codes[:, 1:], runs[0].choices[:, 1:])
        return ComponentParity("code_predictor", self.network.dtype, parity, greedy)

    def _code2wav(self, codes: Tensor) -> None:
        with self._timed("code2wav"):
            self._require_memory("code2wav")
            ours = self.network.code2wav(codes)
            let_go()
            parity = self._compare(ours, self.reference.code2wav(codes))
            self.components.append(ComponentParity("code2wav", self.network.dtype, parity, None, (_WHOLE,)))

    def _random_codes(self) -> Tensor:
        config = self.network.speech.code2wav
        shape = config.num_quantizers, self.request.frames
        return torch.randint(0, config.codebook_size, shape, generator=torch.Generator().manual_seed(0))

    def _compare(self, ours: Stages, runs: Iterator[Stages], before: Stages | None = None) -> tuple[StageParity, ...]:
        """Stages ``before`` the module, which have no truth, then its own; ``runs``: the reference's, the truth's."""
        let_go()
        theirs, before = next(runs), before or {}
        exact = next(runs, None)
        dtype = self.network.dtype
        parts = [_trace("lluda", dtype, {name: ours[name] for name in names}) for names in (before, theirs)]
        first = compare_traces(parts[0], _trace("transformers", "f32", before), None, self.tolerance) if before else ()
        truth = _trace("float64", "f64", exact) if exact is not None else None
        return (*first, *compare_traces(parts[1], _trace("transformers", dtype, theirs), truth, self.tolerance))

    def _require_context(self, prompt: PromptRows) -> None:
        context, needed = self.network.cache_options.max_length, len(prompt) + self.request.greedy
        if needed > context:
            raise LimitExceeded(
                f"{len(prompt)} rows and {self.request.greedy} greedy tokens exceed the context of {context}; "
                "take smaller media, or a larger --max-context"
            )

    def _require_memory(self, component: str) -> None:
        """OutOfMemory if one side of a component does not fit (experts stay as they are for the truth)."""
        prefix = COMPONENTS[component]
        encoders = (COMPONENTS["audio"], COMPONENTS["vision"]) if component == "thinker" else ()
        specs = [
            spec
            for spec in all_parameters(self.network.files.config)
            if spec.name.startswith(prefix) and not spec.name.startswith(encoders or ("\0",))
        ]
        has_experts = any(".experts." in spec.name for spec in specs)
        widens = self.request.float64 and not has_experts
        item = 8 if widens else DTYPE_BYTES[self.network.dtype]
        needed = item * sum(spec.elements for spec in specs)
        available = psutil.virtual_memory().available
        if needed > available:
            raise OutOfMemory(
                f"{component} needs about {needed / 1e9:.2f} GB in {self.network.dtype} but {available / 1e9:.2f} GB "
                "are available; validate other components (--only), or a reduced checkpoint (lluda synth "
                "--set thinker_config.text_config.num_hidden_layers=4)"
            )

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        self.note(f"running {what}")
        began = time.perf_counter()
        yield
        self.seconds[what] = round(time.perf_counter() - began, 3)


def _trace(name: str, dtype: str, stages: Stages) -> Trace:
    return Trace(name, dtype, stages)


def _rounded(positions: Tensor) -> Tensor:
    """To a thousandth: odd frame rates are added up in other orders."""
    return (positions * 1024).round() / 1024


def _equal_codes(ours: Tensor, theirs: Tensor) -> GreedyParity:
    differing = (ours != theirs).flatten().nonzero()
    if not len(differing):
        return GreedyParity(ours.numel(), None)
    first = int(differing[0])
    return GreedyParity(ours.numel(), first, int(ours.flatten()[first]), int(theirs.flatten()[first]))


def _describe(files: ModelFiles) -> dict[str, Any]:
    text = files.config.text
    return {
        "name": files.name,
        "model_type": files.config.model_type,
        "parameters": sum(spec.elements for spec in all_parameters(files.config) if not spec.tied_to),
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "experts": text.moe.num_experts if text.moe else 0,
    }
