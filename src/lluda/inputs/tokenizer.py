"""Text to token ids and back: byte-level BPE of the tokenizers library, with added tokens kept apart from it.

The BPE never sees an added token: text is split on their spellings here, and only where the caller allows it. So text
that a user typed cannot become a control token, however it is spelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from lluda.errors import CorruptFile, InvalidRequest, ModelNotFound
from lluda.inputs.byte_level import token_bytes
from lluda.inputs.tokenizer_files import read_added_tokens, read_bpe_files, read_tokenizer_json


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token outside the BPE vocabulary's merges. ``special`` ones (``<|im_end|>``) are control, never text."""

    id: int
    content: str
    special: bool


class Tokenizer:
    """``bpe`` has no added tokens; ``added`` holds them. ``source`` names the file in errors.

    Raises:
        CorruptFile: two added tokens with one id or spelling, or an id that the vocabulary gives to another token.
        UnsupportedModel: a tokenizer that is not byte-level.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, added: Sequence[AddedToken], source: Path) -> None:
        self.source = source
        self._bpe = bpe
        vocabulary = bpe.get_vocab(with_added_tokens=False)
        _check_ids(vocabulary, added, source)
        self._added = {token.content: token for token in added}
        self._special_ids = frozenset(token.id for token in added if token.special)
        self._pieces: dict[int, bytes] = {}
        for content, token_id in vocabulary.items():
            self._pieces[token_id] = token_bytes(content)
        for token in added:
            self._pieces[token.id] = token.content.encode()
        self._added_pattern = _alternatives(self._added)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """From ``tokenizer.json``, or else ``vocab.json``, ``merges.txt`` and ``tokenizer_config.json`` of Qwen.

        ModelNotFound if neither is there; CorruptFile for contents that break their format.
        """
        if (folder / "tokenizer.json").is_file():
            source = folder / "tokenizer.json"
            bpe, added = read_tokenizer_json(source)
        elif (folder / "vocab.json").is_file():
            source = folder / "vocab.json"
            bpe, added = read_bpe_files(folder), read_added_tokens(folder / "tokenizer_config.json")
        else:
            raise ModelNotFound(
                f"{folder}: no tokenizer: neither tokenizer.json nor vocab.json and merges.txt is there"
            )
        return cls(bpe, [AddedToken(*token) for token in added], source)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], path: Path) -> Tokenizer:
        """From a GGUF file's ``tokenizer.ggml.*`` metadata. UnsupportedModel for a kind that is not byte-level BPE."""
        from lluda.inputs.gguf_tokenizer import read_gguf_tokenizer

        bpe, added = read_gguf_tokenizer(metadata, path)
        return cls(bpe, [AddedToken(*token) for token in added], path)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id in use."""
        return max(self._pieces) + 1

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which are never shown."""
        return self._special_ids

    @property
    def added_tokens(self) -> Mapping[str, AddedToken]:
        """Added tokens by spelling."""
        return self._added

    def id_of(self, token: str) -> int | None:
        """The id of an added token or of a whole vocabulary entry; None if there is none."""
        if token in self._added:
            return self._added[token].id
        found: int | None = self._bpe.token_to_id(token)
        return found

    def check_fits(self, embedding_rows: int) -> None:
        """CorruptFile if an id in use has no row in the embedding table."""
        if self.vocab_size > embedding_rows:
            raise CorruptFile(
                self.source,
                "the tokenizer has more ids than the model has embedding rows",
                expected=f"at most {embedding_rows}",
                found=self.vocab_size,
            )

    def encode(self, text: str, *, allow_special: bool = True) -> list[int]:
        """Token ids of ``text``. Without ``allow_special`` every character is text: no added token is recognised.

        InvalidRequest for what is no text, or holds surrogates (it came from invalid UTF-8).
        """
        if not isinstance(text, str):
            raise InvalidRequest(f"text to encode must be a string, not {type(text).__name__}")
        surrogate = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
        if surrogate is not None:
            raise InvalidRequest(f"the text is not valid UTF-8: character {surrogate} is a lone surrogate")
        if not allow_special or self._added_pattern is None:
            return self._encode_plain(text)
        ids: list[int] = []
        # re.split with one group alternates plain segments and added tokens.
        for index, segment in enumerate(self._added_pattern.split(text)):
            ids += [self._added[segment].id] if index % 2 else self._encode_plain(segment)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ``ids``; incomplete UTF-8 becomes U+FFFD. InvalidRequest for an id that does not exist."""
        return b"".join(self.bytes_of(i) for i in ids if not (skip_special and i in self._special_ids)).decode(
            errors="replace"
        )

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes one token stands for. InvalidRequest for a negative id; ids no token uses stand for nothing."""
        if token_id < 0:
            raise InvalidRequest(f"token id {token_id} does not exist")
        return self._pieces.get(token_id, b"")

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._bpe.encode(text, add_special_tokens=False).ids) if text else []


def _alternatives(added: Mapping[str, AddedToken]) -> re.Pattern[str] | None:
    """A pattern that finds the longest added token at the leftmost place."""
    spellings = sorted(added, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, spellings))})") if spellings else None


def _check_ids(vocabulary: Mapping[str, int], added: Sequence[AddedToken], source: Path) -> None:
    by_id = {token_id: content for content, token_id in vocabulary.items()}
    if len(by_id) != len(vocabulary):
        raise CorruptFile(source, "two vocabulary entries share an id")
    for token in added:
        other = by_id.setdefault(token.id, token.content)
        if other != token.content:
            raise CorruptFile(source, f"added token {token.content!r} has the id {token.id} of {other!r}")
    if len({token.content for token in added}) != len(added):
        raise CorruptFile(source, "an added token is listed twice")
    missing = next((i for i in range(len(by_id)) if i not in by_id), None)
    if missing is not None:
        raise CorruptFile(source, f"no token has the id {missing}, though larger ids are in use")
