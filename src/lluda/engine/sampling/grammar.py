"""Grammars that answers keep to: JSON, JSON schemas, regular expressions and Lark, compiled by llguidance.

Nothing is compiled ahead for all states, so a large schema costs little; what a grammar may cost is bounded by the
library's limits ("fuel"). Added tokens are no text: no string of a grammar can become one, and only Lark can name them,
as ``<tool_call>`` or ``<[151657]>``.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lluda.engine.sampling.constraint import Constraint, ConstraintState
from lluda.errors import InvalidRequest
from lluda.extras import missing
from lluda.inputs.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_GRAMMAR = 1 << 20
"""Characters of one grammar."""

_KEPT, _KEPT_CHARACTERS = 64, 4 << 20
"""Compiled grammars that are kept, and the characters of them all."""

_FIRST_FUEL = 200_000
"""Of the library's steps when a grammar is compiled; 0.2 s at most."""

_SHOWN = 300
_END = b"<|end of the grammar|>"
_OBJECT = {"type": "object"}
_JSON = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}"}
"""White space between JSON's tokens is bounded, or a model could go on with it for ever."""


class Grammars:
    """Compiles grammars over the tokens of one model. May be used from several threads.

    Each method raises InvalidRequest for a grammar that is too large, does not compile, has a part that is not
    implemented, or allows no text; and MissingDependency without llguidance (``lluda[serve]``).
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """``vocabulary``: the number of logits, of which the tokenizer may use fewer."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock = threading.Lock()
        self._vocabulary_of_library: Any = None
        self._kept: OrderedDict[str, _Grammar] = OrderedDict()

    def json_object(self) -> Constraint:
        """One JSON object."""
        return self.json_schema(_OBJECT)

    def json_schema(self, schema: Mapping[str, Any]) -> Constraint:
        """A JSON value that keeps to ``schema`` (draft 2020-12; remote references are not fetched)."""
        if not isinstance(schema, Mapping):
            raise InvalidRequest(f"a JSON schema must be an object, not {type(schema).__name__}")
        try:
            text = json.dumps(schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the JSON schema is no JSON ({type(error).__name__}); give an object") from None
        return self._compiled("JSON schema", text, lambda matcher: matcher.grammar_from_json_schema(text, None, _JSON))

    def regex(self, pattern: str) -> Constraint:
        """A text that ``pattern`` matches as a whole (syntax of Rust's regex: no look-around, no back-references)."""
        return self._compiled("regular expression", pattern, lambda matcher: matcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> Constraint:
        """A text of ``start`` in a Lark grammar, as llguidance extends it (``%json {…}``, ``<token>``)."""
        return self._compiled("grammar", grammar, lambda matcher: matcher.grammar_from_lark(grammar))

    def _compiled(self, kind: str, text: str, read: Callable[[Any], str]) -> Constraint:
        if len(text) > MAX_GRAMMAR:
            raise InvalidRequest(f"the {kind} has {len(text)} characters; at most {MAX_GRAMMAR} are compiled")
        library = _library()
        try:
            source = read(library.LLMatcher)
        except ValueError as error:
            raise _refused(kind, str(error)) from None
        with self._lock:
            if source in self._kept:
                self._kept.move_to_end(source)
                return self._kept[source]
            if self._vocabulary_of_library is None:
                wrapper = library.TokenizerWrapper(_Vocabulary(self._tokenizer))
                self._vocabulary_of_library = library.LLTokenizer(wrapper)
        limits = library.LLParserLimits(initial_lexer_fuel=_FIRST_FUEL, verbose_errors=False)
        matcher = library.LLMatcher(self._vocabulary_of_library, source, log_level=0, limits=limits)
        grammar = _Grammar(kind, matcher, self._vocabulary, self._tokenizer.vocab_size)
        grammar.check()
        self._keep(source, grammar)
        return grammar

    def _keep(self, source: str, grammar: _Grammar) -> None:
        with self._lock:
            self._kept[source] = grammar
            while len(self._kept) > _KEPT or sum(map(len, self._kept)) > _KEPT_CHARACTERS:
                self._kept.popitem(last=False)


class _Vocabulary:
    """The tokens as the library asks for them. It wants one that ends a text: one more than there are, since which ids
    end an answer is the sampler's to know."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.vocab_size
        own = [tokenizer.bytes_of(number, skip_special=False) for number in range(tokenizer.vocab_size)]
        self.tokens = [*own, _END]
        self.special_token_ids = [*sorted(tokenizer.added_tokens.by_id), self.eos_token_id]

    def __call__(self, text: str) -> Sequence[int]:
        return self._tokenizer.encode(text, allow_special=False)


class _Grammar:
    """See `Constraint`."""

    def __init__(self, kind: str, matcher: Any, vocabulary: int, tokens: int) -> None:
        self.kind, self.vocabulary, self.tokens = kind, vocabulary, tokens
        self._matcher = matcher
        self._lock = threading.Lock()

    def check(self) -> None:
        """InvalidRequest: it did not compile, or no answer is of it."""
        if self._matcher.is_error():
            raise _refused(self.kind, self._matcher.get_error())
        state = self.begin()
        if not state.allowed().any() and not state.may_end:
            raise _refused(self.kind, "it allows no text at all")

    def begin(self) -> ConstraintState:
        """See `Constraint`."""
        with self._lock:
            return _State(self, self._matcher.deep_copy())


class _State:
    """See `ConstraintState`."""

    def __init__(self, grammar: _Grammar, matcher: Any) -> None:
        self._grammar, self._matcher = grammar, matcher
        self._allowed = self._mask()

    def allowed(self) -> NDArray[np.bool_]:
        """See `ConstraintState`."""
        return self._allowed.copy()

    def accept(self, token: int) -> None:
        """See `ConstraintState`."""
        if not self._matcher.consume_token(token):
            raise _refused(self._grammar.kind, self._matcher.get_error())
        self._allowed = self._mask()

    @property
    def may_end(self) -> bool:
        """See `ConstraintState`."""
        return bool(self._matcher.is_accepting())

    @property
    def must_end(self) -> bool:
        """See `ConstraintState`."""
        return self.may_end and not self._allowed.any()

    def _mask(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise _refused(self._grammar.kind, self._matcher.get_error())
        mask = np.zeros(self._grammar.vocabulary, np.bool_)
        mask[: self._grammar.tokens] = np.unpackbits(bits, count=self._grammar.tokens, bitorder="little")
        return mask


def _refused(kind: str, reason: str) -> InvalidRequest:
    words = " ".join(reason.replace("<non-verbose/>", "").split())
    if words.startswith("NoExtension"):
        words = "it allows no text at all"
    return InvalidRequest(f"the {kind} cannot be used: {words[:_SHOWN]}; correct it, or make it simpler")


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise missing("a grammar", "llguidance") from None
    return llguidance
