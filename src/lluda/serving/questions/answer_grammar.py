"""The form that an answer must have: calls of tools, JSON, or both, as a grammar over its tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lluda.errors import InvalidRequest
from lluda.serving.http.errors import ApiError
from lluda.serving.questions.tool_use import ToolUse
from lluda.serving.reading.marks import Mark, Marks

if TYPE_CHECKING:
    from lluda.engine.sampling.constraint import Constraint
    from lluda.engine.sampling.grammar import Grammars

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

# Of white space that a schema allows anywhere, models may write without end.
_BOUNDED_SPACE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}"}
_AS_TRAINED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How Qwen's chat template writes the arguments of a call."""


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """``schema``: of the answer (None: any text); ``tools``: calls of which may stand in its place, or must;
    ``thinks``: a thought comes first."""

    schema: Mapping[str, Any] | None
    tools: ToolUse
    thinks: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether anything is forbidden."""
        return self.schema is not None or self.tools.must_call

    def constraint(self, grammars: Grammars, marks: Marks, param: str) -> Constraint:
        """Compiled; takes milliseconds. ApiError 400 ``invalid_json_schema`` of ``param``: it does not compile."""
        try:
            if self.schema is not None and not self.tools.functions and not self.thinks:
                return grammars.json_schema(self.schema)
            return grammars.lark(self.lark(marks))
        except InvalidRequest as error:
            raise ApiError(400, "invalid_json_schema", f"{param}: {error}", param=param) from None

    def lark(self, marks: Marks) -> str:
        """The grammar in llguidance's Lark: ``<[id]>`` is a token by its id, ``%json`` what keeps to a schema."""
        forms, rules = [], list[str]()
        if self.schema is not None and not self.tools.must_call:
            forms.append("answer")
            rules.append(f"answer: {_json(self.schema, _BOUNDED_SPACE)}")
        if self.tools.functions:
            forms.append("calls")
            rules += self._calls(marks)
        thought = ""
        if self.thinks:
            thought = "thought "
            opening, closing = _token(marks, Mark.THINK), _token(marks, Mark.THINK_END)
            rules += [f'thought: {opening} THOUGHT {closing} "\\n\\n"', "THOUGHT: /(.|\\n)*/"]
        return "\n".join([f"start: {thought}({' | '.join(forms)})", *rules])

    def _calls(self, marks: Marks) -> Sequence[str]:
        opening, closing = _token(marks, Mark.CALL), _token(marks, Mark.CALL_END)
        functions = list(self.tools.functions.values())
        more = ' ("\\n" call)*' if self.tools.parallel else ""
        names = " | ".join(f"call_{index}" for index in range(len(functions)))
        rules = [f"calls: call{more}", f'call: {opening} "\\n" ({names}) "\\n" {closing}']
        for index, function in enumerate(functions):
            opened = json.dumps(json.dumps({"name": function.name})[:-1] + ', "arguments": ')
            rules.append(f'call_{index}: {opened} arguments_{index} "}}"')
            rules.append(f"arguments_{index}: {_json(function.parameters or ANY_OBJECT, _AS_TRAINED)}")
        return rules


def _json(schema: Mapping[str, Any], spacing: Mapping[str, Any]) -> str:
    """What keeps to ``schema``, spaced as llguidance's own key says."""
    return f"%json {json.dumps({**schema, 'x-guidance': spacing})}"


def _token(marks: Marks, mark: Mark) -> str:
    number = marks.id_of(mark)
    assert number is not None, "tools are refused where the vocabulary has no marks for calls"
    return f"<[{number}]>"
