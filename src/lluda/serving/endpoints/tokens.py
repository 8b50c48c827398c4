"""POST /tokenize, POST /detokenize, GET /tokenizer_info: what lm-eval needs in place of tokenizer files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from lluda.inputs.chat.chat_options import ChatOptions
from lluda.serving.http.body import read_body
from lluda.serving.http.errors import invalid
from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.service import Service
from lluda.serving.wire.tokens import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from lluda.api.model import Model


async def tokenize(request: Request) -> Response:
    """Token ids of a text (no special token is recognised in it) or of a conversation."""
    service: Service = request.app.state.service
    body = await read_body(request, TokenizeRequest)
    if body.model is not None:
        service.check_model(body.model)
    return await service.in_worker(_tokenized, service.model, body)


async def detokenize(request: Request) -> Response:
    """The text of token ids, special ones spelled out."""
    service: Service = request.app.state.service
    body = await read_body(request, DetokenizeRequest)
    if body.model is not None:
        service.check_model(body.model)
    return await service.in_worker(_detokenized, service.model, body)


async def tokenizer_info(request: Request) -> Response:
    """Special tokens and the chat template, which names the first and last ones."""
    service: Service = request.app.state.service
    model = service.model
    template = model.chat_template
    named = template.special_tokens if template else {}
    ends = [model.tokenizer.decode([number], skip_special=False) for number in model.ends.turn]
    return json_response(
        {
            "eos_token": ends[0] if ends else None,
            "bos_token": named.get("bos_token"),
            "pad_token": named.get("pad_token"),
            "chat_template": template.source if template else None,
        }
    )


def _tokenized(model: Model, body: TokenizeRequest) -> Response:
    ids = _ids(model, body)
    limit = model.runner.cache_options.max_length
    return json_response({"tokens": ids, "count": len(ids), "max_model_len": limit})


def _detokenized(model: Model, body: DetokenizeRequest) -> Response:
    size = model.config.text.vocab_size
    for index, number in enumerate(body.tokens):
        if not 0 <= number < size:
            raise invalid(f"tokens[{index}] must be from 0 to {size - 1}, not {number}", f"tokens[{index}]")
    return json_response({"prompt": model.tokenizer.decode(body.tokens, skip_special=False)})


def _ids(model: Model, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        return list(model.read_prompt(body.messages, ChatOptions())[0].ids)
    prefix = list(model.tokenizer.prefix_ids) if body.add_special_tokens else []
    return prefix + model.tokenizer.encode(body.prompt or "", allow_special=False)


ROUTES = (
    ApiRoute("POST", "/tokenize", tokenize, summary="Token ids of a text", body=TokenizeRequest),
    ApiRoute("POST", "/detokenize", detokenize, summary="The text of token ids", body=DetokenizeRequest),
    ApiRoute("GET", "/tokenizer_info", tokenizer_info, summary="Special tokens and chat template"),
)
