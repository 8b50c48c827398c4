"""The items of one session in their order, and as the messages that the model reads."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lluda.serving.http.errors import invalid
from lluda.serving.realtime.conversation.items import CallItem, CallOutputItem, Item, MessageItem, Part, new_id
from lluda.serving.realtime.turns.sound_format import HEARD_RATE, SPOKEN_RATE, SoundEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lluda.engine.media import EncodedMedia
    from lluda.serving.limits import Limits
    from lluda.serving.realtime.session_settings import SoundFormat

ROOT = "root"
"""The id before that of the first item."""

_MEDIA = {"input_audio": "audio", "input_image": "image"}


@dataclass(frozen=True, slots=True)
class Reading:
    """Messages for the model, where each was taken from, and the parts that their media are, in order."""

    messages: Sequence[dict[str, Any]]
    paths: Sequence[str]
    media: Sequence[Part]

    def keep(self, encoded: Sequence[EncodedMedia]) -> None:
        """The media were read: so they need not be read again."""
        for part, medium in zip(self.media, encoded, strict=True):
            part.source = medium


class Conversation:
    """Items by their place and by their id. The model does not see those before ``forgotten`` ones any more."""

    def __init__(self, limits: Limits) -> None:
        self.id = new_id("conv")
        self._limits = limits
        self._items: list[Item] = []
        self._by_id: dict[str, Item] = {}
        self._first = 0  # that the model sees

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(tuple(self._items))

    def get(self, number: str) -> Item | None:
        """The item of that id."""
        return self._by_id.get(number)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put ``item`` behind the one of the id ``after`` (None: the last, `ROOT`: first); the id of the one before it.

        ApiError 400: there is one of its id, there is none of ``after``, or there are too many.
        """
        if item.id in self._by_id:
            raise invalid(f"there is an item {item.id[:80]!r} already", "item.id", "item_create_duplicate_item_id")
        if len(self._items) >= self._limits.realtime_items:
            words = f"the conversation has {len(self._items)} items, which is all it may have; delete some"
            raise invalid(words, "item", "conversation_full")
        self._require_room(item)
        place = len(self._items) if after is None else self._behind(after)
        self._items.insert(place, item)
        self._by_id[item.id] = item
        self._first += place < self._first
        self._let_go_of_media()
        return self._items[place - 1].id if place else None

    def before(self, item: Item) -> str | None:
        """The id of the item before ``item``; None: it is the first, or not there any more."""
        if self._by_id.get(item.id) is not item:
            return None
        place = self._items.index(item)
        return self._items[place - 1].id if place else None

    @property
    def last_id(self) -> str | None:
        """Of the last item."""
        return self._items[-1].id if self._items else None

    def remove(self, number: str) -> bool:
        """Whether there was an item of that id."""
        item = self._by_id.pop(number, None)
        if item is None:
            return False
        place = self._items.index(item)
        del self._items[place]
        self._first -= place < self._first
        return True

    def reading(self, instructions: str, items: Iterable[Item] | None = None) -> Reading:
        """All that the model has not forgotten (or ``items``), as messages."""
        found = self._items[self._first :] if items is None else list(items)
        return _reading(instructions, found, self._limits)

    def forget(self) -> bool:
        """Let the model see only the later half of the turns that it sees; whether any is left to be forgotten."""
        turns = [
            place
            for place in range(self._first + 1, len(self._items))
            if isinstance(item := self._items[place], MessageItem) and item.role == "user"
        ]
        if not turns:
            return False
        self._first = turns[len(turns) // 2]
        for item in self._items[: self._first]:
            if isinstance(item, MessageItem):
                for part in item.parts:
                    part.source = None
        return True

    def _behind(self, number: str) -> int:
        if number == ROOT:
            return 0
        item = self._by_id.get(number)
        if item is None:
            words = f"there is no item {number[:80]!r}"
            raise invalid(words, "previous_item_id", "item_create_invalid_previous_item_id")
        return self._items.index(item) + 1

    def _require_room(self, item: Item) -> None:
        """ApiError 400: with ``item`` there is more text than a conversation may have. Of more sound than the model may
        hear at once, it forgets the beginning."""
        size = sum(_text_bytes(one) for one in (*self._items, item))
        if size > self._limits.text_bytes:
            words = f"with this item the conversation has {size:,} bytes of text; at most {self._limits.text_bytes:,}"
            raise invalid(words, "item", "conversation_full")
        while sum(_seconds_to_hear(one) for one in (*self._items, item)) > self._limits.audio_seconds:
            if not self.forget():
                break

    def _let_go_of_media(self) -> None:
        """Samples are kept for whoever asks for them, of the latest turns; pictures while the model sees them."""
        left, pictures = int(self._limits.realtime_buffer_seconds * HEARD_RATE), self._limits.images
        for item in reversed(self._items):
            for part in item.parts if isinstance(item, MessageItem) else ():
                if part.samples is not None:
                    left -= len(part.samples)
                    if left < 0:
                        part.samples = None
                if part.kind == "input_image":
                    pictures -= 1
                    if pictures < 0:
                        part.source = None


def user_sound(samples: NDArray[np.float32], source: Any = None) -> Part:
    """A part of what a user said, mono at 16 kHz; ``source`` in place of ``samples`` for the model."""
    kept = np.rint(samples.clip(-1, 1) * 32767).astype(np.int16)
    seconds = len(samples) / HEARD_RATE
    return Part("input_audio", source=samples if source is None else source, samples=kept, seconds=seconds)


def _text_bytes(item: Item) -> int:
    match item:
        case MessageItem():
            return sum(len((part.text or "").encode("utf-8", "replace")) for part in item.parts)
        case CallItem():
            return len(item.arguments.encode("utf-8", "replace"))
        case CallOutputItem():
            return len(item.output.encode("utf-8", "replace"))


def _seconds_to_hear(item: Item) -> float:
    parts = item.parts if isinstance(item, MessageItem) else []
    return sum(part.seconds for part in parts if part.kind == "input_audio" and part.source is not None)


def with_sound(item: MessageItem, sound: SoundFormat) -> dict[str, Any]:
    """As OpenAI writes it, with its sound in the format ``sound`` where it is kept; blocking."""
    described = item.describe()
    for part, content in zip(item.parts, described["content"], strict=True):
        if part.samples is not None:
            content["audio"] = base64.b64encode(_encoded(part.samples, sound)).decode()
    return described


def _encoded(samples: NDArray[np.int16], sound: SoundFormat) -> bytes:
    import soxr

    encoder = SoundEncoder(sound.type, sound.rate)  # type: ignore[arg-type]
    floats = soxr.resample(samples.astype(np.float32) / 32767, HEARD_RATE, SPOKEN_RATE)
    return encoder.push(floats) + encoder.finish()


def _reading(instructions: str, items: Sequence[Item], limits: Limits) -> Reading:
    messages: list[dict[str, Any]] = []
    paths: list[str] = []
    media: list[Part] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
        paths.append("session.instructions")
    seen = _last_pictures(items, limits.images)
    for item in items:
        if _is_nothing(item, seen):
            continue
        if isinstance(item, CallItem) and messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(item.as_call())
            continue
        messages.append(_message(item, seen, media))
        paths.append(f"item {item.id}")
    return Reading(messages, paths, media)


def _is_nothing(item: Item, seen: set[int]) -> bool:
    """A call that was cut off called nobody; of an answer that was broken off at once nothing was heard; pictures that
    were followed by many are not seen any more."""
    match item:
        case CallItem():
            return item.status != "completed"
        case MessageItem(role="assistant"):
            return not any(part.text for part in item.parts)
        case MessageItem(role="user"):
            return bool(item.parts) and not any(_is_read(part, seen) for part in item.parts)
    return False


def _message(item: Item, seen: set[int], media: list[Part]) -> dict[str, Any]:
    match item:
        case CallItem():
            return {"role": "assistant", "content": "", "tool_calls": [item.as_call()]}
        case CallOutputItem():
            return {"role": "tool", "content": item.output, "tool_call_id": item.call_id}
        case MessageItem(role="user"):
            parts = [_user_part(part, media) for part in item.parts if _is_read(part, seen)]
            return {"role": "user", "content": parts or ""}
        case MessageItem():
            return {"role": item.role, "content": "".join(part.text or "" for part in item.parts)}


def _user_part(part: Part, media: list[Part]) -> dict[str, Any]:
    kind = _MEDIA.get(part.kind)
    if kind is None or part.source is None:
        return {"type": "text", "text": part.text or ""}
    media.append(part)
    rate = {"sampling_rate": HEARD_RATE} if isinstance(part.source, np.ndarray) else {}
    return {"type": kind, kind: part.source, **rate}


def _is_read(part: Part, seen: set[int]) -> bool:
    return part.kind != "input_image" or id(part) in seen


def _last_pictures(items: Sequence[Item], count: int) -> set[int]:
    """Clients that show a camera send pictures without end: the model sees the last ones."""
    pictures = [
        id(part)
        for item in items
        if isinstance(item, MessageItem)
        for part in item.parts
        if part.kind == "input_image" and part.source is not None
    ]
    return set(pictures[-count:])
