"""The validation ladder: each component of lluda, then of the reference, on what lluda's component before it made.

So an error is seen in the component where it arises, and one component of one implementation is in memory at a time. A
text model is a ladder of one component.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from lluda import __version__
from lluda.config.model import resolve_dtype
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.memory_plan import DTYPE_BYTES
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.speech.talker_prompt import CapturedHiddenStates
from lluda.errors import InvalidRequest, LimitExceeded, OutOfMemory
from lluda.evaluation.distribution import compare_distributions
from lluda.evaluation.llama_cpp_reference import LlamaCppReference, require_llama_cpp
from lluda.evaluation.lluda_components import LludaComponents, position_rows
from lluda.evaluation.lluda_talker import LludaTalker, TalkerInput, TalkerTrace
from lluda.evaluation.mistralrs_reference import MistralRsReference, require_mistralrs
from lluda.evaluation.parity import StageParity, compare_greedy, compare_traces
from lluda.evaluation.trace import (
    Continuation,
    Implementation,
    Recorder,
    Stages,
    Trace,
    continue_greedily,
    release_memory,
    trace,
)
from lluda.evaluation.transformers_components import TransformersComponents, TransformersDecoder, text_decoder
from lluda.evaluation.transformers_loading import require_transformers, widened
from lluda.evaluation.transformers_talker import ReferenceTrace, TransformersTalker
from lluda.evaluation.validation import (
    LLAMA_CPP_TOLERANCE,
    RUNGS,
    TOLERANCES,
    ComponentParity,
    Validation,
    ValidationRequest,
)
from lluda.inputs.media.audio_file import audio_blocks
from lluda.inputs.media.image_file import read_image
from lluda.models.build import all_parameters
from lluda.models.components import BY_NAME, component_of
from lluda.models.vision_encoder import VisionOutput

Note = Callable[[str], None]

_DISTRIBUTIONS = {"transformers": "transformers", "llama.cpp": "llama-cpp-python", "mistralrs": "mistralrs"}
_WIDENED_WHOLE = ("audio_encoder", "vision_encoder", "code2wav")

_LIKELIEST = "logits of the likeliest"
"""Log-probabilities of the ids that the reference holds likeliest."""

_ALONE = "each recording is run alone: transformers' rows of one depend on what shares its batch (spec section 3.2)"
_AUDIO_CONFIG = "the talker's config is given n_window, for which transformers 5.23 raises (spec section 6.2)"
_OWN_SOUND = "a video with its sound keeps its positions in the talker; transformers' generate leaves them out"
_LAST_TOKEN = "the last token of an answer that its limit cut off is spoken too; transformers drops it (spec 6.2)"
_WHOLE = "one forward, not chunked_decode, which loses 555 samples at every joint (spec section 8.1)"


def validate(
    files: ModelFiles, options: LoadOptions, request: ValidationRequest, note: Note = lambda _: None
) -> Validation:
    """Run and compare. ``options`` say how lluda is loaded (its dtype is the reference's too); ``note`` is told what
    begins. Against llama.cpp and mistralrs lluda runs in float32.

    Raises:
        InvalidRequest: a component that is not there, or that the input does not reach; an id outside the vocabulary.
        LimitExceeded, OutOfMemory: the prompt does not fit the context, or a component the memory.
        MissingDependency, UnsupportedModel: the reference cannot be had or cannot read the checkpoint.
        LludaError: one of the runs has NaN or infinity in it.
    """
    omni = files.config.omni
    request.require_components(speaks=omni is not None and omni.speech is not None)
    dtype = _dtype(files, options, request)
    # Before lluda's run, which may take minutes.
    if request.reference == "transformers":
        require_transformers()
    elif request.reference == "llama.cpp":
        require_llama_cpp(files.path)
    else:
        require_mistralrs(files.path, files.config)
    return _Run(files, replace(options, dtype=dtype), request, note).validation()


def _dtype(files: ModelFiles, options: LoadOptions, request: ValidationRequest) -> str:
    if request.reference == "transformers":
        return resolve_dtype(options.dtype, files.config.dtype)
    if files.config.omni is not None:
        raise InvalidRequest(
            f"an Omni model is held against transformers, not {request.reference}; leave --reference out"
        )
    if options.dtype not in ("auto", "f32"):
        raise InvalidRequest(
            f"against {request.reference} lluda runs in f32, not {options.dtype!r:.20}; leave --dtype out"
        )
    return "f32"


class _Run:
    """The components of one validation, what lluda's have made so far for those after them, and the time of each."""

    def __init__(self, files: ModelFiles, options: LoadOptions, request: ValidationRequest, note: Note) -> None:
        self.files, self.options, self.request, self.note = files, options, request, note
        self.ours = LludaComponents(files, options)
        self.dtype, self.backend = self.ours.dtype, self.ours.backend.describe()
        self.omni_reference = (
            TransformersComponents(files.path, self.dtype, float64=request.float64) if files.config.omni else None
        )
        self.media = self.ours.prepare(request.given)
        self.audio: Sequence[Tensor | None] = [None] * len(self.media)
        self.vision: Sequence[VisionOutput | None] = [None] * len(self.media)
        self.tolerance = TOLERANCES[self.dtype] if request.reference == "transformers" else LLAMA_CPP_TOLERANCE
        self.components: list[ComponentParity] = []
        self.seconds: dict[str, float] = {}

    @property
    def reference(self) -> TransformersComponents:
        """Of an Omni model."""
        assert self.omni_reference is not None
        return self.omni_reference

    def validation(self) -> Validation:
        request, wanted = self.request, self._wanted()
        decoder = "thinker" if self.files.config.omni else "text"
        speaking = [name for name in ("talker", "code_predictor") if name in wanted]
        decodes = decoder in wanted or bool(speaking and self.media)
        for name, encode in (("audio_encoder", self._audio_encoder), ("vision_encoder", self._vision_encoder)):
            if request.reaches(name) and (name in wanted or decodes):
                encode(judged=name in wanted)
        prompt = PromptRows([])
        codes = torch.empty(0, 0)
        if decodes or speaking:
            prompt = self.ours.prompt(request.given, self.media, self.audio, self.vision)
            self._require_context(prompt)
            said = TalkerInput(prompt, request.given.spoken, torch.empty(0))
            if decodes:
                said = self._decoder(decoder, prompt, judged=decoder in wanted)
            if speaking:
                codes = self._talker(said, speaking)
        if "code2wav" in wanted:
            self._code2wav(codes if codes.numel() else self._random_codes())
        return Validation(
            model=_describe(self.files),
            request=request,
            dtype=self.dtype,
            backend=self.backend,
            tolerance=self.tolerance,
            rows=len(prompt),
            components=tuple(self.components),
            versions=_versions(request.reference),
            seconds=self.seconds,
        )

    def _wanted(self) -> tuple[str, ...]:
        omni = self.files.config.omni
        if omni is None:
            return ("text",)
        present = [name for name in RUNGS if name != "text" and (omni.speech or not BY_NAME[name].speaks)]
        return self.request.only or tuple(name for name in present if self.request.reaches(name))

    def _audio_encoder(self, *, judged: bool) -> None:
        name, recorder = "audio_encoder", Recorder()
        indexes = [index for index, medium in enumerate(self.media) if medium.features is not None]
        for index in indexes:
            recorder("features", torch.tensor(self.media[index].features))
        self._require_memory(name)
        with self._timed(name, "lluda"):
            self.audio = self.ours.audio_encoder(self.media, recorder if judged else None)
        if judged:
            features = {"features": self.reference.features([self._samples(index) for index in indexes])}
            stages = self._compare(name, recorder.stages, self.reference.audio_encoder(self.media), features)
            self._add(name, stages, corrections=(_ALONE,))

    def _samples(self, index: int) -> Any:
        part = self.request.given.media[index]
        blocks = audio_blocks(part.source, part.options.get("sampling_rate"), where=part.where)
        return np.concatenate(list(blocks))

    def _vision_encoder(self, *, judged: bool) -> None:
        name, recorder = "vision_encoder", Recorder()
        self._require_memory(name)
        with self._timed(name, "lluda"):
            self.vision = self.ours.vision_encoder(self.media, recorder if judged else None)
        if judged:
            # Of pictures alone: transformers' processor of videos needs torchvision.
            pictures = []
            for part, medium in zip(self.request.given.media, self.media, strict=True):
                if part.kind == "image" and medium.patches is not None:
                    recorder("pixels", medium.patches.values)
                    pictures.append(read_image(part.source, where=part.where))
            pixels = {"pixels": self.reference.pixels(pictures, self.ours.vision_input)} if pictures else {}
            self._add(name, self._compare(name, recorder.stages, self.reference.vision_encoder(self.media), pixels))

    def _decoder(self, name: str, prompt: PromptRows, *, judged: bool) -> TalkerInput:
        omni, ids = self.files.config.omni, list(prompt.ids)
        speech = omni.speech if omni else None
        captured = CapturedHiddenStates(prompt, speech.talker.accept_hidden_layer) if speech else None
        self._require_memory(name)
        with self._timed(name, "lluda"):
            ours = self.ours.decoder(prompt, captured)
            stages = dict(trace(ours, ids, self.request.rows_per_step if judged else len(ids)).stages)
            tokens = continue_greedily(ours, ids, self.request.greedy)
            if judged and self.request.reference == "mistralrs":
                self._against_mistralrs(name, ours, ids, tokens)
            self.backend = ours.network.describe()  # after the run: it tells what ran on torch operations
        del ours
        release_memory()
        if judged and self.request.reference == "llama.cpp":
            self._against_llama_cpp(name, ids, stages["logits"], tokens)
        elif judged and self.request.reference == "transformers":
            self._against_transformers(name, prompt, stages, tokens)
        hidden = [captured.hidden[row] for row in captured.rows] if captured else []
        return TalkerInput(prompt, self._answer(tokens), torch.stack(hidden).cpu() if hidden else torch.empty(0))

    def _against_transformers(self, name: str, prompt: PromptRows, ours: Stages, tokens: Continuation) -> None:
        before, theirs = {}, list[Continuation]()
        if self.omni_reference:
            before = {"positions": _rounded(self.reference.positions(prompt.ids, self.media))}
            ours["positions"] = _rounded(position_rows(prompt))
        stages = self._compare(name, ours, self._transformers_runs(prompt, theirs), before)
        greedy = compare_greedy(tokens, theirs[0]) if self.request.greedy else None
        self._add(name, stages, greedy=greedy)

    def _transformers_runs(self, prompt: PromptRows, tokens: list[Continuation]) -> Iterator[Stages]:
        """The decoder's stages and its greedy ``tokens``, then the stages of the truth."""
        ids, decoder = list(prompt.ids), self._transformers_decoder(prompt)
        stages = dict(trace(decoder, ids, self.request.rows_per_step).stages)
        tokens.append(continue_greedily(decoder, ids, self.request.greedy))
        yield stages
        with widened(decoder.module):
            yield dict(trace(decoder, ids, len(ids)).stages)

    def _transformers_decoder(self, prompt: PromptRows) -> TransformersDecoder:
        if self.omni_reference:
            return self.omni_reference.decoder(prompt)
        return text_decoder(self.files.path, self.dtype, prompt)

    def _against_llama_cpp(self, name: str, ids: Sequence[int], logits: Tensor, tokens: Continuation) -> None:
        with self._timed(name, "llama.cpp"):
            reference = LlamaCppReference(self.files.path, len(ids) + self.request.greedy, self.options.threads)
            theirs = trace(reference, ids, self.request.rows_per_step)
            their_tokens = continue_greedily(reference, ids, self.request.greedy)
        stages = compare_traces(Trace("lluda", {"logits": logits}), theirs, None, self.tolerance)
        distribution = compare_distributions(logits, theirs.stages["logits"])
        greedy = compare_greedy(tokens, their_tokens) if self.request.greedy else None
        self._add(name, stages, greedy=greedy, distribution=distribution)

    def _against_mistralrs(self, name: str, ours: Implementation, ids: list[int], tokens: Continuation) -> None:
        """Its greedy tokens, and along them both sides' log-probabilities of the ids that it holds likeliest."""
        with self._timed(name, "mistralrs"):
            theirs = MistralRsReference(self.files.path, self.files.config).continue_greedily(ids, self.request.greedy)
        along = [*ids, *theirs.tokens[:-1]]
        logits = trace(ours, along, self.request.rows_per_step).stages["logits"][-len(theirs.tokens) :]
        mine = logits.float().log_softmax(-1).gather(-1, theirs.ids)
        traces = Trace("lluda", {_LIKELIEST: mine}), Trace("mistralrs", {_LIKELIEST: theirs.log_probabilities})
        greedy = compare_greedy(tokens, theirs.continuation())
        self._add(name, compare_traces(*traces, None, self.tolerance), greedy=greedy, of_likeliest=True)

    def _answer(self, tokens: Continuation) -> tuple[int, ...]:
        """The ids before the one that ends the answer; the input's own where that is none."""
        found: list[int] = []
        for token in tokens.tokens:
            if token in self.files.eos_ids:
                break
            found.append(token)
        return tuple(found) or self.request.given.spoken

    def _talker(self, given: TalkerInput, judged: Sequence[str]) -> Tensor:
        """The codes ``[codebooks, frames]`` that were chosen."""
        request = self.request
        params = SpeechParams(sampling=SamplingParams(temperature=0.0), max_frames=request.frames).with_defaults(
            self.files.generation_config
        )
        self._require_memory("talker")
        with self._timed("talker", "lluda"):
            ours = LludaTalker(self.ours, given, request.speaker).trace(params)
        release_memory()
        if len(ours.codes):
            with self._timed("talker", "transformers"):
                talker = TransformersTalker(self.reference)
                runs = list(talker.runs(given, self.media, ours, request.speaker, params.sampling))
                del talker
            self._judge_talker(ours, runs, judged)
        return ours.codes.T

    def _judge_talker(self, ours: TalkerTrace, runs: Sequence[ReferenceTrace], judged: Sequence[str]) -> None:
        own_sound = any(part.kind == "video" and part.options.get("use_audio") for part in self.request.given.media)
        corrections = (_LAST_TOKEN, *[_AUDIO_CONFIG] * bool(self.media), *[_OWN_SOUND] * own_sound)
        theirs, *exact = (run.talker | {"positions": _rounded(run.talker["positions"])} for run in runs)
        mine = ours.talker | {"positions": _rounded(ours.talker["positions"])}
        truth = [stages | {"positions": theirs["positions"]} for stages in exact]
        choices = runs[0].choices
        if "talker" in judged:
            stages = self._compare("talker", mine, iter([theirs, *truth]))
            greedy = compare_greedy(_codes(ours.codes[:, :1]), _codes(choices[:, :1]))
            self._add("talker", stages, greedy=greedy, corrections=corrections)
        if "code_predictor" in judged:
            stages = self._compare("code_predictor", ours.predictor, (run.predictor for run in runs))
            self._add(
                "code_predictor", stages, greedy=compare_greedy(_codes(ours.codes[:, 1:]), _codes(choices[:, 1:]))
            )

    def _code2wav(self, codes: Tensor) -> None:
        self._require_memory("code2wav")
        with self._timed("code2wav", "lluda"):
            ours = self.ours.code2wav(codes)
        stages = self._compare("code2wav", ours, self.reference.code2wav(codes))
        self._add("code2wav", stages, corrections=(_WHOLE,))

    def _random_codes(self) -> Tensor:
        config = self.ours.speech.code2wav
        shape = config.num_quantizers, self.request.frames
        return torch.randint(0, config.codebook_size, shape, generator=torch.Generator().manual_seed(0))

    def _compare(
        self, name: str, ours: Stages, runs: Iterator[Stages], before: Stages | None = None
    ) -> tuple[StageParity, ...]:
        """Stages ``before`` the module, which have no truth, then its own; ``runs``: the reference's, the truth's."""
        release_memory()
        with self._timed(name, "transformers"):
            theirs = next(runs)
        exact = None
        if self.request.float64:
            with self._timed(name, "float64"):
                exact = Trace("float64", next(runs))
        runs = iter(())  # with it goes the reference's module
        release_memory()
        before = before or {}
        inputs, outputs = (Trace("lluda", {stage: ours[stage] for stage in names}) for names in (before, theirs))
        first = compare_traces(inputs, Trace("transformers", before), None, self.tolerance) if before else ()
        return (*first, *compare_traces(outputs, Trace("transformers", theirs), exact, self.tolerance))

    def _add(self, name: str, stages: tuple[StageParity, ...], **found: Any) -> None:
        self.components.append(ComponentParity(name, self.dtype, stages, **found))

    def _require_context(self, prompt: PromptRows) -> None:
        context, needed = self.ours.cache_options.max_length, len(prompt) + self.request.greedy
        if needed > context:
            raise LimitExceeded(
                f"{len(prompt)} tokens and {self.request.greedy} greedy ones exceed the context of {context}; "
                "take fewer, smaller media, or a larger --max-context"
            )
        vocabulary = self.files.config.text.vocab_size
        outside = [token for token in prompt.ids if not 0 <= token < vocabulary]
        if outside:
            raise InvalidRequest(f"token id {outside[0]} is outside the vocabulary; ids go from 0 to {vocabulary - 1}")

    def _require_memory(self, name: str) -> None:
        """OutOfMemory if the reference's component does not fit: its weights, and beside them a layer's experts once
        more while they are joined, or one tensor in float64 for the truth, where not all of it is widened at once."""
        if self.request.reference != "transformers":
            return
        owners = {name, "code_predictor"} if name == "talker" else {name}
        dense, experts = [0], {"": 0}
        for spec in all_parameters(self.files.config):
            if component_of(spec.name).name not in owners or spec.tied_to:
                continue
            layer, is_expert, _ = spec.name.partition(".experts.")
            if is_expert:
                experts[layer] = experts.get(layer, 0) + spec.elements
            else:
                dense.append(spec.elements)
        item, elements = DTYPE_BYTES[self.dtype], sum(dense) + sum(experts.values())
        truth = self.request.float64
        needed = item * elements + max(item * max(experts.values()), 8 * max(dense) if truth else 0)
        if truth and name in _WIDENED_WHOLE:
            needed = 8 * elements
        available = psutil.virtual_memory().available
        if needed > available:
            section = BY_NAME[name].section or "text"
            raise OutOfMemory(
                f"transformers needs about {needed / 1e9:.2f} GB for {name} in {self.dtype} but {available / 1e9:.2f} "
                "GB are available; validate other components (--only), or a reduced checkpoint: lluda synth with "
                f"--set for fewer layers in {section}"
            )

    @contextmanager
    def _timed(self, name: str, implementation: str) -> Iterator[None]:
        self.note(f"{name}: running {implementation}")
        began = time.perf_counter()
        yield
        self.seconds[f"{name} {implementation}"] = round(time.perf_counter() - began, 3)


def _rounded(positions: Tensor) -> Tensor:
    """To a thousandth: odd frame rates are added up in other orders."""
    return (positions * 1024).round() / 1024


def _codes(codes: Tensor) -> Continuation:
    return Continuation(tuple(codes.flatten().tolist()))


def _versions(reference: str) -> dict[str, str]:
    distribution = _DISTRIBUTIONS[reference]
    return {
        "lluda": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        distribution: metadata.version(distribution),
    }


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
