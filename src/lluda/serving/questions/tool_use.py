"""The functions of a request: which there are, whether one must be called, how many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lluda.serving.http.errors import invalid
from lluda.serving.limits import Limits
from lluda.serving.questions.schemas import check_schema
from lluda.serving.wire.tools import Function, NamedTool, Tool, ToolChoice


@dataclass(frozen=True, slots=True)
class ToolUse:
    """``functions`` that may be called, by name; ``must_call``: one must be; ``parallel``: several may be."""

    functions: Mapping[str, Function]
    must_call: bool = False
    parallel: bool = True

    @property
    def for_template(self) -> list[dict[str, Any]] | None:
        """The tools as a chat template takes them."""
        if not self.functions:
            return None
        return [
            {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}
            for function in self.functions.values()
        ]


def tool_use(tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None, limits: Limits) -> ToolUse:
    """What ``tools``, ``tool_choice`` and ``parallel_tool_calls`` say together.

    With ``none`` no function is there; with a named one it alone, which must be called once. ApiError 400: too many
    tools, two of one name, a bad schema, or a choice that is none of them.
    """
    given = list(tools or ())
    if len(given) > limits.tools:
        raise invalid(f"tools has {len(given)} entries; at most {limits.tools} are taken", "tools")
    functions: dict[str, Function] = {}
    for index, tool in enumerate(given):
        if tool.function.name in functions:
            raise invalid(f"tools[{index}]: there are two functions {tool.function.name!r}", f"tools[{index}]")
        if tool.function.parameters is not None:
            check_schema(tool.function.parameters, limits, f"tools[{index}].function.parameters")
        functions[tool.function.name] = tool.function
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in functions:
            raise invalid(f"tool_choice: there is no function {name[:64]!r} among the tools", "tool_choice")
        return ToolUse({name: functions[name]}, must_call=True, parallel=False)
    if choice == "none":
        return ToolUse({})
    if choice == "required" and not functions:
        raise invalid("tool_choice required needs tools", "tool_choice")
    return ToolUse(functions, must_call=choice == "required", parallel=parallel is not False)
