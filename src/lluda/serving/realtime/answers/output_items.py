"""The items of one answer while they are made, and the events that tell of them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from lluda.serving.realtime.conversation.items import CallItem, Item, MessageItem, Part, Status
from lluda.serving.realtime.events.server_events import (
    ArgumentsDelta,
    ArgumentsDone,
    AudioDelta,
    AudioDone,
    ContentPartAdded,
    ContentPartDone,
    ItemAdded,
    ItemDone,
    OutputItemAdded,
    OutputItemDone,
    ServerEvent,
    TextDelta,
    TextDone,
    TranscriptDelta,
    TranscriptDone,
)

if TYPE_CHECKING:
    from lluda.serving.realtime.conversation.conversation import Conversation


class Tell(Protocol):
    """Sends an event. ``droppable``: it is worthless once the answer was given up; ``sent`` is called when it has
    left."""

    def __call__(
        self, event: ServerEvent, *, droppable: bool = False, sent: Callable[[], object] | None = None
    ) -> None:
        """As above."""


class Output:
    """Where the items of one answer go. ``conversation`` None: they become part of none."""

    def __init__(self, response_id: str, conversation: Conversation | None, tell: Tell) -> None:
        self.response_id, self._conversation, self.tell = response_id, conversation, tell
        self.items: list[Item] = []

    def begin(self, item: Item) -> dict[str, Any]:
        """``item`` has begun; what its events say of it."""
        index, described = len(self.items), item.describe()
        self.items.append(item)
        self.tell(OutputItemAdded(response_id=self.response_id, output_index=index, item=described))
        if self._conversation is not None:
            before = self._conversation.add(item)
            self.tell(ItemAdded(previous_item_id=before, item=described))
        return {"response_id": self.response_id, "item_id": item.id, "output_index": index}

    def end(self, item: Item, status: Status) -> None:
        """``item`` is over."""
        item.status = status
        described = item.describe()
        index = self.items.index(item)
        self.tell(OutputItemDone(response_id=self.response_id, output_index=index, item=described))
        if self._conversation is not None and self._conversation.get(item.id) is item:
            self.tell(ItemDone(previous_item_id=self._conversation.before(item), item=described))


class OutputMessage:
    """What the assistant says, or writes where it is not ``spoken``. ``heard`` is called when a piece of sound has
    left."""

    def __init__(self, output: Output, *, spoken: bool, heard: Callable[[], object]) -> None:
        self._output, self._spoken, self._heard = output, spoken, heard
        self.part = Part("output_audio" if spoken else "output_text", "")
        self.item = MessageItem("assistant", [], status="in_progress")
        self._place = output.begin(self.item)
        self.item.parts.append(self.part)
        output.tell(ContentPartAdded(**self._place, part=self.part.describe_event()))

    def say(self, text: str) -> None:
        """More text, or what is about to be said."""
        self.part.text = (self.part.text or "") + text
        delta = TranscriptDelta if self._spoken else TextDelta
        self._output.tell(delta(**self._place, delta=text), droppable=True)

    def sound(self, data: bytes, seconds: float) -> None:
        """More sound, in the output format."""

        def left() -> None:
            self.part.seconds += seconds
            self._heard()

        event = AudioDelta(**self._place, delta=base64.b64encode(data).decode())
        self._output.tell(event, droppable=True, sent=left)

    def end(self, status: Status) -> None:
        """Nothing more is said."""
        text = self.part.text or ""
        if self._spoken:
            self._output.tell(AudioDone(**self._place))
            self._output.tell(TranscriptDone(**self._place, transcript=text))
        else:
            self._output.tell(TextDone(**self._place, text=text))
        self._output.tell(ContentPartDone(**self._place, part=self.part.describe_event()))
        self._output.end(self.item, status)


class OutputCall:
    """A call of a function."""

    def __init__(self, output: Output, call_id: str, name: str) -> None:
        self._output = output
        self.item = CallItem(name, call_id=call_id, status="in_progress")
        self._place = output.begin(self.item)

    def more(self, text: str) -> None:
        """More of its arguments."""
        self.item.arguments += text
        self._output.tell(ArgumentsDelta(**self._place, call_id=self.item.call_id, delta=text), droppable=True)

    def end(self, status: Status) -> None:
        """It is complete, or was cut off: then nothing tells its arguments as if they were all."""
        if status == "completed":
            self._output.tell(
                ArgumentsDone(
                    **self._place, call_id=self.item.call_id, name=self.item.name, arguments=self.item.arguments
                )
            )
        self._output.end(self.item, status)
