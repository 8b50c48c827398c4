"""What callers saw, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import quantiles
from typing import Any

from lluda.bench.server.call import Seen
from lluda.bench.server.load import Round

FIRST_TOKEN_SECONDS, TOKEN_SECONDS = 2.0, 0.2
"""A request counts as good if its first token comes, and 95 of 100 of its tokens follow, within so many seconds, and a
listener never waits once there is sound."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 95th percentile and largest of ``count`` numbers."""

    median: float
    p95: float
    largest: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without values."""
        if not values:
            return None
        cuts = quantiles(values, n=20, method="inclusive") if len(values) > 1 else [values[0]] * 19
        return cls(cuts[9], cuts[18], max(values), len(values))


@dataclass(frozen=True, slots=True)
class Figures:
    """One round. Times in seconds. ``first_sound_of_turn``: from when the server said that a spoken turn was over,
    where it finds that out. ``tokens_per_second``: of all callers, from the first request to the last answer's end;
    ``decode_rate``: while all of them decode (None where there is no such time). ``real_time_factor``: seconds from a
    request to its last sound for each second of sound; ``goodput``: good requests a second."""

    kind: str
    callers: int
    requests: int
    failed: int
    errors: tuple[str, ...]
    first_token: Spread | None
    between_tokens: Spread | None
    tokens_per_second: float | None
    decode_rate: float | None
    first_sound: Spread | None
    first_sound_of_turn: Spread | None
    real_time_factor: Spread | None
    audio_seconds_per_second: float | None
    underruns: int
    goodput: float

    def to_json(self) -> dict[str, Any]:
        """In plain types."""
        return asdict(self)


def figures(measured: Round) -> Figures:
    """The numbers of a round."""
    well = [one for one in measured.seen if not one.error]
    begun = min((one.sent for one in measured.seen), default=0.0)
    seconds = max((one.ended for one in measured.seen), default=0.0) - begun
    spoken = [one for one in well if one.sounds]
    found = [one for one in spoken if one.turn_ended]
    tokens = sum(one.tokens for one in well)
    return Figures(
        kind=measured.kind,
        callers=measured.callers,
        requests=len(measured.seen),
        failed=len(measured.seen) - len(well),
        errors=tuple(dict.fromkeys(one.error for one in measured.seen if one.error))[:5],
        first_token=Spread.of([one.texts[0] - one.sent for one in well if one.texts]),
        between_tokens=Spread.of([gap for one in well for gap in _gaps(one)]),
        tokens_per_second=tokens / seconds if tokens and seconds > 0 else None,
        decode_rate=_decode_rate(well, measured.callers),
        first_sound=Spread.of([one.sounds[0][0] - one.sent for one in spoken]),
        first_sound_of_turn=Spread.of([one.sounds[0][0] - one.turn_ended for one in found]),
        real_time_factor=Spread.of([(one.sounds[-1][0] - one.sent) / one.audio_seconds for one in spoken]),
        audio_seconds_per_second=sum(one.audio_seconds for one in spoken) / seconds if spoken else None,
        underruns=sum(one.underruns for one in spoken),
        goodput=sum(map(_is_good, well)) / seconds if seconds > 0 else 0.0,
    )


def _gaps(seen: Seen) -> list[float]:
    return [after - before for before, after in pairwise(seen.texts)]


def _is_good(seen: Seen) -> bool:
    gaps = Spread.of(_gaps(seen))
    in_time = not seen.texts or seen.texts[0] - seen.sent <= FIRST_TOKEN_SECONDS
    return in_time and (gaps is None or gaps.p95 <= TOKEN_SECONDS) and not seen.underruns


def _decode_rate(seen: Sequence[Seen], callers: int) -> float | None:
    """Tokens a second of the first request of each caller while all of them decode, as the engine's ``callersN`` counts
    them; a piece of text stands for as many tokens as pieces of its answer do on average."""
    first = [one for one in sorted(seen, key=lambda one: one.sent)[:callers] if len(one.texts) > 1]
    if len(first) < callers:
        return None
    begin, end = max(one.texts[0] for one in first), min(one.texts[-1] for one in first)
    if begin >= end:
        return None
    tokens = sum(one.tokens / len(one.texts) * sum(begin < at <= end for at in one.texts) for one in first)
    return tokens / (end - begin)
