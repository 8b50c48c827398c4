"""What a client does to the conversation: items are put into it, shown, taken out of it and cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lluda.serving.http.body import checked
from lluda.serving.http.errors import ApiError, invalid
from lluda.serving.realtime.conversation.conversation import with_sound
from lluda.serving.realtime.conversation.items import Item, MessageItem
from lluda.serving.realtime.conversation.truncation import heard_text
from lluda.serving.realtime.events import client_events as client
from lluda.serving.realtime.events import server_events as told
from lluda.serving.realtime.events.client_items import client_item, has_media
from lluda.serving.realtime.events.item_fields import InputItems, ItemReference

if TYPE_CHECKING:
    from lluda.serving.realtime.answers.responder import Responder
    from lluda.serving.realtime.conversation.conversation import Conversation
    from lluda.serving.realtime.events.session_fields import ResponseFields
    from lluda.serving.realtime.outbox import Outbox
    from lluda.serving.realtime.session_settings import SoundFormat
    from lluda.serving.service import Service


class ConversationEdits:
    """``sound`` is the format of the session's input."""

    def __init__(self, service: Service, outbox: Outbox, conversation: Conversation, responder: Responder) -> None:
        self._service, self._outbox = service, outbox
        self._conversation, self._responder = conversation, responder

    async def take(self, event: client.ItemEvent, sound: SoundFormat) -> None:
        """Do what ``event`` says. ApiError 400: it cannot be done."""
        match event:
            case client.ItemCreate():
                self.add(await self._item(event.item, sound), event.previous_item_id)
            case client.ItemRetrieve():
                self._outbox.put(told.ItemRetrieved(item=await self._shown(event.item_id, sound)))
            case client.ItemDelete():
                if not self._conversation.remove(event.item_id):
                    raise _no_item(event.item_id, "item_delete_invalid_item_id")
                self._outbox.put(told.ItemDeleted(item_id=event.item_id))
            case client.ItemTruncate():
                self._truncate(event)

    def add(self, item: Item, after: str | None = None) -> None:
        """Put a whole item into the conversation. ApiError 400 as `Conversation.add`."""
        before = self._conversation.add(item, after)
        self._outbox.put(told.ItemAdded(previous_item_id=before, item=item.describe()))
        self._outbox.put(told.ItemDone(previous_item_id=before, item=item.describe()))

    async def input_of(self, wish: ResponseFields, sound: SoundFormat) -> list[Item] | None:
        """The items that a response is to answer; None: the conversation's."""
        if wish.input is None:
            return None
        return [await self._given(one, f"response.input[{index}]", sound) for index, one in enumerate(_input(wish))]

    async def _given(self, one: Any, where: str, sound: SoundFormat) -> Item:
        if not isinstance(one, ItemReference):
            return await self._item(one, sound, where)
        item = self._conversation.get(one.id)
        if item is None:
            raise invalid(f"{where}: there is no item {one.id[:80]!r}", f"{where}.id", "item_reference_invalid_item_id")
        return item

    async def _item(self, given: Any, sound: SoundFormat, where: str = "item") -> Item:
        arguments = given, sound, self._service.limits, where
        return await self._service.in_worker(client_item, *arguments) if has_media(given) else client_item(*arguments)

    async def _shown(self, number: str, sound: SoundFormat) -> dict[str, Any]:
        item = self._conversation.get(number)
        if item is None:
            raise _no_item(number, "item_retrieve_invalid_item_id")
        if isinstance(item, MessageItem) and item.role == "user":
            return await self._service.in_worker(with_sound, item, sound)
        return item.describe()

    def _truncate(self, event: client.ItemTruncate) -> None:
        item = self._conversation.get(event.item_id)
        if item is None:
            raise _no_item(event.item_id, "item_truncate_invalid_item_id")
        parts = item.parts if isinstance(item, MessageItem) else []
        part = parts[event.content_index] if event.content_index < len(parts) else None
        if part is None or part.kind != "output_audio":
            words = "Only model output audio messages can be truncated"
            raise invalid(words, "item_id", "unsupported_content_type")
        if item.status == "in_progress":  # nobody listens any more
            self._responder.cancel("client_cancelled")
        heard = min(event.audio_end_ms / 1000, part.seconds)
        part.text = heard_text(part.text or "", heard, part.seconds)
        part.seconds = heard
        end = min(event.audio_end_ms, int(1000 * heard))
        self._outbox.put(told.ItemTruncated(item_id=item.id, content_index=event.content_index, audio_end_ms=end))


def _input(wish: ResponseFields) -> list[Any]:
    try:
        return checked({"input": wish.input}, InputItems).input
    except ApiError as error:
        param = None if error.param is None else f"response.{error.param}"
        raise ApiError(error.status, error.code, f"response.{error.message}", param=param) from None


def _no_item(number: str, code: str) -> ApiError:
    return invalid(f"the conversation has no item {number[:80]!r}", "item_id", code)
