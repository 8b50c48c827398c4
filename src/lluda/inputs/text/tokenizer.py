"""Tokenizer: text to ids and back, byte-level BPE.

One `tokenizers.Tokenizer` without any added token does the merging; added tokens are found by lluda itself. So whether
a spelling counts as a token is decided per call, and a user's text never becomes a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded
from lluda.inputs.text.added_tokens import AddedTokens
from lluda.inputs.text.byte_level import bytes_of_letters
from lluda.inputs.text.gguf_tokenizer import vocabulary_from_gguf
from lluda.inputs.text.splitting import GPT2
from lluda.inputs.text.tokenizer_files import vocabulary_from_folder
from lluda.inputs.text.vocabulary import Vocabulary

MAX_TEXT_LENGTH = 2**23
"""Characters `Tokenizer.encode` takes at once. Some five times the longest context of a released Qwen3, and below the
10^7 steps after which the library's pattern matching aborts on one run of white space."""

_LONG_TEXT = 2**12
"""Characters from which on a text is encoded as a batch of one: that lets other threads run meanwhile (`encode` stops
the whole interpreter, for seconds of some megabytes), and takes a fifth of the time."""


class Tokenizer:
    """A model's tokenizer. Immutable; may be used from several threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """CorruptFile: the merges do not fit the vocabulary."""
        self.path = vocabulary.path
        self.vocab_size = vocabulary.size
        """Ids in use: the highest one with a token, plus one. The embedding may have more rows."""
        self.prefix_ids = vocabulary.prefix_ids
        """Ids a plain text (not a chat) starts with; never added by `encode`. Empty for Qwen."""
        self.end_ids = vocabulary.end_ids
        """Ids that end an answer, as far as the tokenizer's files name them."""
        self._plain = tokenizers.Tokenizer(vocabulary.model())
        self._plain.pre_tokenizer = vocabulary.splitting.pre_tokenizer()
        if vocabulary.nfc:
            self._plain.normalizer = normalizers.NFC()
        self.added_tokens = AddedTokens(vocabulary.added, normalizers.NFC().normalize_str if vocabulary.nfc else str)
        self._bytes = {token.id: token.text.encode() for token in vocabulary.added}

    @classmethod
    def from_folder(cls, path: Path) -> Tokenizer:
        """The tokenizer of a model folder: tokenizer.json, or else vocab.json with merges.txt.

        ModelNotFound: no such files. CorruptFile: a file breaks its format. UnsupportedModel: not a byte-level BPE
        tokenizer that lluda implements.
        """
        return cls(vocabulary_from_folder(Path(path)).checked())

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], path: Path) -> Tokenizer:
        """The tokenizer in the metadata of the .gguf file ``path``. Errors as `from_folder`."""
        return cls(vocabulary_from_gguf(metadata, Path(path)).checked())

    @classmethod
    def empty(cls) -> Tokenizer:
        """One without tokens, for callers that feed ids and read ids: no id has text."""
        return cls(Vocabulary(Path("no tokenizer"), {}, (), (), GPT2, nfc=False))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens; `decode` leaves them out."""
        return self.added_tokens.special_ids

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling in the file: an added token's text, or byte letters ("Ġthe"). None if there
        is no such token."""
        added = self.added_tokens.by_text.get(token)
        return added.id if added else self._plain.token_to_id(token)

    def check_fits(self, embedding_rows: int) -> None:
        """CorruptFile: an id has no row in an embedding of ``embedding_rows``."""
        if self.vocab_size > embedding_rows:
            raise CorruptFile(
                self.path,
                "the tokenizer has more ids than the model's embedding has rows; they belong to different models",
                expected=f"at most {embedding_rows}",
                found=self.vocab_size,
            )

    def encode(self, text: str, *, allow_special: bool = True) -> list[int]:
        """The ids of ``text``. Nothing is put before or after it.

        With ``allow_special`` False no added token is found in it: one typed by a user stays ordinary text. Bytes that
        the vocabulary has no token for are left out, as the released tokenizers do (SmolLM2 lacks 21, all control
        characters or never in UTF-8; Qwen lacks none).

        InvalidRequest: not a str, or holds half a surrogate pair. LimitExceeded: over `MAX_TEXT_LENGTH`.
        """
        check_text(text, "the text to encode")
        if not allow_special:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece in self.added_tokens.split(text):
            ids += [piece] if isinstance(piece, int) else self._encode_plain(piece)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD. Ids without a token (rows that only pad
        the embedding) have no text. InvalidRequest: not integers from 0."""
        return b"".join(self.bytes_of(number, skip_special) for number in ids).decode("utf-8", "replace")

    def bytes_of(self, number: int, skip_special: bool = True) -> bytes:
        """The UTF-8 bytes of one token: parts of characters are possible. Errors and empty results as `decode`."""
        try:
            number = index(number)  # numpy's and torch's integers too
            letters = None if number in self._bytes else self._plain.id_to_token(number)
        except (TypeError, OverflowError):
            raise InvalidRequest(f"a token id must be an integer from 0 to 2^32, not {number!r:.60}") from None
        if letters is not None:
            self._bytes[number] = bytes_of_letters(letters)
        return b"" if skip_special and number in self.special_ids else self._bytes.get(number, b"")

    def _encode_plain(self, text: str) -> list[int]:
        if len(text) < _LONG_TEXT:
            return self._plain.encode(text, add_special_tokens=False).ids
        return self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids


def check_text(text: object, name: str) -> None:
    """InvalidRequest: ``text`` is not a str or holds half a surrogate pair. LimitExceeded: over `MAX_TEXT_LENGTH`."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} must be a str, not {type(text).__name__}")
    if len(text) > MAX_TEXT_LENGTH:
        raise LimitExceeded(f"{name} has {len(text)} characters; at most {MAX_TEXT_LENGTH} are taken at once")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at {error.start}"
        raise InvalidRequest(f"{name} holds half a surrogate pair ({found}); decode it as UTF-8 first") from None
