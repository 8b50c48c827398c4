"""OpenAI's own client, as docs/serving.md shows it."""

from __future__ import annotations

from openai import OpenAI

from tests.serving.realtime.talking import user_text
from tests.serving.running import RunningServer


def test_a_turn_with_openais_client(server: RunningServer, client: OpenAI) -> None:
    with client.realtime.connect(model="tiny-omni") as connection:
        connection.session.update(session={"type": "realtime", "instructions": "", "max_output_tokens": 400})
        connection.conversation.item.create(item=user_text("What is one plus two?"))  # type: ignore[arg-type]
        connection.response.create()
        transcript, sound = "", 0
        for event in connection:
            if event.type == "response.output_audio_transcript.done":
                transcript = event.transcript
            elif event.type == "response.output_audio.delta":
                sound += len(event.delta)
            elif event.type == "response.done":
                assert event.response.status == "completed"
                break
            assert event.type != "error"
    assert transcript == "One plus two is three." and sound > 0
    secret = client.realtime.client_secrets.create(session={"type": "realtime"})
    assert secret.value.startswith("ek_")
