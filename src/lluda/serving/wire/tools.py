"""Functions that a model may call, which of them it must call, and the form that an answer must have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from lluda.serving.wire.wire_model import WireModel

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(WireModel):
    """``parameters``: a JSON schema of the arguments (None: any object)."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(WireModel):
    """One function in chat's form."""

    type: Literal["function"]
    function: Function


class FunctionChoice(WireModel):
    """The name of the function that must be called."""

    name: str


class NamedTool(WireModel):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionChoice


ToolMode = Literal["none", "auto", "required"]


def mode_or_object(value: object) -> str | None:
    """The tag of a ``tool_choice``."""
    return "#mode" if isinstance(value, str) else "#object" if isinstance(value, dict | WireModel) else None


ToolChoice = Annotated[
    Annotated[ToolMode, Tag("#mode")] | Annotated[NamedTool, Tag("#object")],
    Discriminator(
        mode_or_object,
        custom_error_type="invalid_value",
        custom_error_message='must be none, auto, required or {"type": "function", "function": {"name": …}}',
    ),
]


class JsonSchema(WireModel):
    """``schema`` of the whole answer (None: any JSON object)."""

    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(WireModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(WireModel):
    """What keeps to a schema, in chat's form."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def by_type(value: object) -> str | None:
    """The tag of an object, or a model, that says its ``type``."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"#{kind}" if isinstance(kind, str) else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("#text")]
    | Annotated[JsonObjectFormat, Tag("#json_object")]
    | Annotated[JsonSchemaFormat, Tag("#json_schema")],
    Discriminator(
        by_type,
        custom_error_type="invalid_value",
        custom_error_message="must have a type of text, json_object or json_schema",
    ),
]
