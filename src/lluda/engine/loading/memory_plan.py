"""Memory is planned before it is taken: weights, KV cache and activations, and a refusal with the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lluda.backends import memory_available
from lluda.config.decoder import DecoderConfig
from lluda.config.model import DTypeName
from lluda.config.omni import SpeechConfig
from lluda.engine.speech.speech_params import MAX_FRAMES
from lluda.engine.speech.talker_prefixes import RETAINED_ROWS
from lluda.engine.speech.vocoder_graph import STREAMS
from lluda.errors import OutOfMemory
from lluda.models.components import BY_NAME, component_and_part
from lluda.parameters import ParameterSpec

_MOVABLE = {
    BY_NAME[name].plan_name: name
    for name in ("code2wav", "vision_encoder", "audio_encoder", "code_predictor", "talker")
}
"""Components as the plan and as ``--place`` call them, those first that cost least on a CPU."""

_THINKERS, _EXPERT_PARTS = ("thinker", "text"), ("routed experts", "shared experts", "routers")
"""Components whose experts can be apart from them, and parts that then go; norms are too small to tell apart here."""

_TALKER_PROMPT = 512
"""Rows of a talker's prompt, mostly: a question's and the answer's first token."""

_ROWS_ALIVE = 4

FRAMES_AT_ONCE = 8
"""Of code2wav in one push of a spoken answer (`speech.RAMP`)."""

DTYPE_BYTES: Mapping[str, int] = {"bf16": 2, "f32": 4, "f64": 8}


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One line of the plan: a component, its parameters (0 for what is no weight), its bytes and their device."""

    component: str
    parameters: int
    nbytes: int
    device: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model will take. ``weights`` are in ``dtype`` or kept as stored; tied tensors count once. ``available``:
    bytes free now on each device."""

    dtype: DTypeName
    weights: tuple[PlanRow, ...]
    kv_cache: PlanRow
    activations: PlanRow
    available: Mapping[str, int]
    speech: tuple[PlanRow, ...] = ()
    """Of answers that are spoken: keys and values of the talker, and what code2wav computes with."""
    media: tuple[PlanRow, ...] = ()
    """Of pictures and sound in a prompt (`plan_media`)."""
    sampling: tuple[PlanRow, ...] = ()
    """What penalties and biases of each sequence are looked up in, where the device chooses tokens itself."""
    ranks: tuple[PlanRow, ...] = ()
    """Of the other processes that share the model, all that each takes (`engine.parallel.ranks_plan`)."""

    @property
    def rows(self) -> tuple[PlanRow, ...]:
        """All lines."""
        own = (*self.weights, self.kv_cache, *self.sampling, *self.speech, *self.media, self.activations)
        return (*own, *self.ranks)

    @property
    def parameters(self) -> int:
        """Parameters in all, tied ones once."""
        return sum(row.parameters for row in self.weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(row.nbytes for row in self.weights)

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(row.nbytes for row in self.rows)

    def total_on(self, device: str) -> int:
        """Bytes on one device."""
        return sum(row.nbytes for row in self.rows if row.device == device)

    @property
    def fits(self) -> bool:
        """Whether every device has what it needs."""
        return all(self.total_on(device) <= available for device, available in self.available.items())

    def require_fit(self) -> None:
        """OutOfMemory, with both numbers and a remedy, for the first device whose part does not fit now."""
        for device, available in self.available.items():
            if self.total_on(device) > available:
                weights = sum(row.nbytes for row in self.weights if row.device == device)
                parts = [f"weights {_gb(weights)}"]
                if self.kv_cache.device == device:
                    parts += [f"KV cache {_gb(self.kv_cache.nbytes)}", f"activations {_gb(self.activations.nbytes)}"]
                if others := sum(row.nbytes for row in self.ranks if row.device == device):
                    parts.append(f"other ranks {_gb(others)}")
                elsewhere = ", another --place" if len(self.available) > 1 else ""
                fitting = self._moved_to_cpu(device)
                remedy = f"--place {fitting} fits; or " if fitting else ""
                raise OutOfMemory(
                    f"the model needs {_gb(self.total_on(device))} on {device} ({', '.join(parts)}) but "
                    f"{_gb(available)} are available, {_gb(self.total_on(device) - available)} too few; {remedy}"
                    f"take a smaller --max-context, --dtype bf16{elsewhere}, or a smaller model (lluda plan shows the "
                    "parts)"
                )

    def _moved_to_cpu(self, device: str) -> str:
        """Components on ``device``, as ``--place`` takes them, without which the others fit it, where the CPU has room
        for them: as few as do of those that cost least there, or the experts and, if need be, others; empty if no
        choice fits."""
        missing, sizes = self.total_on(device) - self.available[device], dict[str, int]()
        for row in self.weights:
            if row.device == device and (name := _movable(row)):
                sizes[name] = sizes.get(name, 0) + row.nbytes
        room = self.available.get("cpu", 0 if device.startswith("cpu") else memory_available("cpu")) - self.total_on(
            "cpu"
        )
        cheap = [name for name in _MOVABLE.values() if name in sizes]
        for order in (cheap, ["experts", *cheap] if "experts" in sizes else []):
            moved: list[str] = []
            for name in order:
                if sum(sizes[each] for each in moved) < missing:
                    moved.append(name)
            if missing <= sum(sizes[each] for each in moved) <= room:
                return ",".join(f"{name}=cpu" for name in moved)
        return ""


def _movable(row: PlanRow) -> str | None:
    """What ``--place`` calls what the row is of, if it may be moved by itself."""
    component, _, part = row.component.partition(" / ")
    return "experts" if component in _THINKERS and part in _EXPERT_PARTS else _MOVABLE.get(component)


def plan_memory(
    specs: list[ParameterSpec],
    config: DecoderConfig,
    *,
    dtype: DTypeName,
    kv_bytes: int,
    context: int,
    prefill_rows: int,
    sequences: int = 1,
    device: str = "cpu",
    device_of: Callable[[str], str] | None = None,
    stored: Mapping[str, int] | None = None,
    speech: Sequence[PlanRow] = (),
    media: Sequence[PlanRow] = (),
) -> MemoryPlan:
    """The plan for one text model on ``device``; ``kv_bytes`` at ``context`` positions, for each of ``sequences``;
    ``prefill_rows`` rows computed at once. ``device_of`` a tensor's name, where components are placed apart.
    ``stored`` has the bytes of tensors that are kept in another format than ``dtype``; ``speech``: of `plan_speech`;
    ``media``: of `plan_media`."""
    kept = stored or {}
    totals: dict[tuple[str, str], list[int]] = {}
    for spec in specs:
        if spec.tied_to:
            continue
        place = device_of(spec.name) if device_of else device
        row = totals.setdefault((component_and_part(spec.name), place), [0, 0])
        row[0] += spec.elements
        # Vectors are held as float32 in a BF16 run; they are too few to matter, but the plan is exact about storage.
        row[1] += kept.get(spec.name, spec.elements * DTYPE_BYTES[dtype])
    weights = tuple(PlanRow(name, count, nbytes, place) for (name, place), (count, nbytes) in totals.items())
    devices = dict.fromkeys([device, *(row.device for row in (*weights, *speech))])
    activation_bytes = _activation_bytes(config, dtype, prefill_rows)
    return MemoryPlan(
        dtype=dtype,
        weights=weights,
        kv_cache=PlanRow(f"KV cache, {_times(sequences)}{context} positions", 0, sequences * kv_bytes, device),
        activations=PlanRow(f"activations, {prefill_rows} rows", 0, activation_bytes, device),
        available={name: memory_available(name) for name in devices},
        speech=tuple(speech),
        media=tuple(media),
        sampling=_sampling_tables(config, sequences, device),
    )


def plan_speech(
    config: SpeechConfig, sequences: int, context: int, kv_itemsize: int, device_of: Callable[[str], str]
) -> list[PlanRow]:
    """What ``sequences`` spoken answers of the most frames take beside weights: the talker's keys and values, what is
    kept of users' turns of up to ``context`` rows, and code2wav's rows of the frames that it makes at once, each four
    times (input, output and the two between); on a GPU what its decoder keeps of all streams that have a place."""
    talker, vocoder = config.talker.decoder, config.code2wav
    positions = MAX_FRAMES + _TALKER_PROMPT
    row = talker.kv_elements_per_token * kv_itemsize
    kept = min(RETAINED_ROWS, context)
    width = vocoder.decoder_dim // 2 ** len(vocoder.upsample_rates)
    rows = FRAMES_AT_ONCE * vocoder.samples_per_frame * width * 4 * _ROWS_ALIVE
    vocoder_device = device_of("code2wav.")
    pasts: list[PlanRow] = []
    if vocoder_device.startswith("cuda"):
        streams = -(-sequences // STREAMS) * (STREAMS + 1)
        past = vocoder.transformer.kv_elements_per_token * vocoder.window * kv_itemsize
        pasts.append(PlanRow(f"code2wav's pasts, {streams} streams", 0, streams * past, vocoder_device))
    return [
        PlanRow(
            f"talker's KV cache, {_times(sequences)}{positions} positions",
            0,
            sequences * positions * row,
            device_of("talker."),
        ),
        PlanRow(f"talker's rows of turns, {kept} positions", 0, kept * row, device_of("talker.")),
        PlanRow(f"code2wav, {_times(sequences)}{FRAMES_AT_ONCE} frames", 0, sequences * rows, vocoder_device),
        *pasts,
    ]


def _sampling_tables(config: DecoderConfig, sequences: int, device: str) -> tuple[PlanRow, ...]:
    """An int32 and a float32 for each id of the vocabulary and each sequence, at most: `capture.RowSampling`."""
    if not device.startswith("cuda"):
        return ()
    return (
        PlanRow(
            f"sampling tables, {_times(sequences)}{config.vocab_size} ids", 0, sequences * 8 * config.vocab_size, device
        ),
    )


def _activation_bytes(config: DecoderConfig, dtype: DTypeName, rows: int) -> int:
    """An upper estimate: residual and norms in float32, the widest projections, the feed-forward's three tensors, and
    one row of float32 logits."""
    widest = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    ffn = config.intermediate_size if config.moe is None else config.moe.moe_intermediate_size
    per_row = 4 * 4 * config.hidden_size + 2 * 4 * widest + 3 * 4 * max(ffn, config.hidden_size)
    return rows * per_row * (2 if dtype == "f64" else 1) + 8 * config.vocab_size


def _times(sequences: int) -> str:
    return f"{sequences} x " if sequences > 1 else ""


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
