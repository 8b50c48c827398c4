"""Vocabulary: the contents of a tokenizer file of any format, and the rules for its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import models

from lluda.errors import CorruptFile
from lluda.inputs.text.added_tokens import AddedToken
from lluda.inputs.text.byte_level import EVERYDAY_LETTERS, LETTERS
from lluda.inputs.text.splitting import Splitting

MAX_TOKENS = 2**20
"""Limit of ids: the largest vocabularies released have about 260,000."""

MAX_MERGES = 2**19
"""Limit of merge rules: o200k, the largest released, has 446,189."""

MAX_ADDED_TOKENS = 2**14
"""Limit of added tokens (Qwen3-Omni has 33): compiling the search for them takes time by their number."""

MAX_ADDED_LENGTH = 512
"""Limit of an added token's characters (Qwen3-Omni's longest has 21)."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary.

    ``tokens``: id of each ordinary token, spelled in byte letters. ``merges``: pairs in order of rank. ``added``:
    tokens matched by their spelling; not among ``tokens``. ``unused``: ids without a token (padding of the
    embedding). ``nfc``: text is brought into Unicode form NFC first. ``ignore_merges``: a word that is a token is taken
    whole. ``prefix_ids``: ids a text that is not a chat starts with (the begin-of-text id, where the model wants one).
    ``end_ids``: ids that end an answer, as far as the tokenizer's files name them.
    """

    path: Path
    tokens: dict[str, int]
    merges: Sequence[tuple[str, str]]
    added: tuple[AddedToken, ...]
    splitting: Splitting
    nfc: bool
    ignore_merges: bool = False
    prefix_ids: tuple[int, ...] = ()
    unused: frozenset[int] = frozenset()
    end_ids: tuple[int, ...] = ()
    merges_path: Path | None = None
    """Where the merges come from, if not from ``path``; for messages."""

    @property
    def size(self) -> int:
        """Ids in use: the highest one with a token, plus one."""
        return 1 + max((*self.tokens.values(), *(token.id for token in self.added)), default=-1)

    def checked(self) -> Vocabulary:
        """Itself. CorruptFile: no tokens, too many tokens or merges, an id given twice, left out or out of range, a
        token that is not in byte letters, or a prefix id that no token has."""
        if not self.tokens or "" in self.tokens:
            raise CorruptFile(self.path, "the vocabulary has no tokens, or one without text")
        for found, limit, word in ((len(self.tokens), MAX_TOKENS, "tokens"), (len(self.merges), MAX_MERGES, "merges")):
            if found > limit:
                raise CorruptFile(self.path, f"too many {word}", expected=f"at most {limit}", found=found)
        self._check_ids()
        letters = set().union(*self.tokens)
        if letters - LETTERS:
            letter = min(letters - LETTERS)
            token = next(token for token in self.tokens if letter in token)
            raise CorruptFile(self.path, f"the token {token[:80]!a} is not written in byte-level letters")
        if not self.tokens.keys() >= EVERYDAY_LETTERS:
            missing = min(EVERYDAY_LETTERS - self.tokens.keys())
            raise CorruptFile(self.path, f"the vocabulary has no token for the single letter {missing!a}")
        outside = [number for number in self.prefix_ids if not 0 <= number < self.size]
        if outside:
            rule = "a text is to start with an id that no token has"
            raise CorruptFile(self.path, rule, expected=f"below {self.size}", found=outside[0])
        return self

    def model(self) -> models.BPE:
        """The merging step. CorruptFile: a merge whose parts or result are not ordinary tokens."""
        try:
            return models.BPE(self.tokens, list(self.merges), ignore_merges=self.ignore_merges)
        except Exception:  # the library has no narrower class
            raise self._bad_merge() from None

    def _check_ids(self) -> None:
        ids = [*self.tokens.values(), *(token.id for token in self.added)]
        # All at once first; only what fails is looked at one by one, for the message.
        if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < MAX_TOKENS:
            known = {*ids, *self.unused}
            if len(set(ids)) == len(ids) and len(known) > max(known):
                return
        owner: dict[int, str] = {}
        everything = [*self.tokens.items(), *((token.text, token.id) for token in self.added)]
        for text, number in everything:
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_TOKENS:
                rule = f"the id of token {text[:80]!a} must be an integer from 0 to {MAX_TOKENS - 1}"
                raise CorruptFile(self.path, rule, found=number)
            if number in owner:
                raise CorruptFile(
                    self.path, f"the id {number} is given twice", found=f"{owner[number][:80]!a} and {text[:80]!a}"
                )
            owner[number] = text
        known = owner.keys() | self.unused
        if len(known) <= max(known):
            gap = next(number for number in range(max(known)) if number not in known)
            raise CorruptFile(self.path, f"no token has the id {gap}, though ids go up to {max(known)}")

    def _bad_merge(self) -> CorruptFile:
        path, added = self.merges_path or self.path, {token.text for token in self.added}
        for index, (left, right) in enumerate(self.merges):
            for part in (left, right, left + right):
                if part not in self.tokens:
                    word = "is an added token" if part in added else "is not in the vocabulary"
                    return CorruptFile(path, f"merge {index + 1} ({left[:40]!a} {right[:40]!a}): {part[:80]!a} {word}")
        return CorruptFile(path, "the vocabulary and its merges do not make a tokenizer")


def check_added_count(count: int, path: Path) -> None:
    """CorruptFile: more added tokens than `MAX_ADDED_TOKENS`."""
    if count > MAX_ADDED_TOKENS:
        raise CorruptFile(path, "too many added tokens", expected=f"at most {MAX_ADDED_TOKENS}", found=count)


def check_merge_count(count: int, path: Path) -> None:
    """CorruptFile: more merges than `MAX_MERGES`."""
    if count > MAX_MERGES + 1:  # a merges.txt may begin with a line of its version
        raise CorruptFile(path, "too many merges", expected=f"at most {MAX_MERGES}", found=count)


def merge_pairs(lines: Sequence[object], path: Path) -> list[tuple[str, str]]:
    """Merges given as ``"left right"`` or as pairs. CorruptFile: anything else, or too many."""
    check_merge_count(len(lines), path)
    pairs: list[Any] = [line.split(" ") if isinstance(line, str) else line for line in lines]
    try:
        # One pass in C where all is well, which for 151,387 merges is a tenth of a second.
        checked = [(left, right) for left, right in pairs if left and right]
        if len(checked) == len(pairs) and set(map(type, chain.from_iterable(checked))) <= {str}:
            return checked
    except (TypeError, ValueError):
        pass
    for index, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and _is_token(pair[0]) and _is_token(pair[1])):
            rule = f"merge {index + 1} is not two tokens with a space between"
            raise CorruptFile(path, rule, found=lines[index])
    return [(left, right) for left, right in pairs]


def _is_token(part: object) -> bool:
    return isinstance(part, str) and part != ""


def mark_special(
    added: Sequence[AddedToken], texts: Iterable[str], tokens: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> list[AddedToken]:
    """``added`` with those special whose spelling is among ``texts``; and an ordinary token that is, too, unless text
    becomes it by merging: a ``pad_token`` may be "!"."""
    named = dict.fromkeys(texts)
    found = [replace(token, special=True) if token.text in named else token for token in added]
    known = {token.text for token in added}
    unlisted = [text for text in named if text in tokens and text not in known and text not in LETTERS]
    if unlisted:
        merged = {left + right for left, right in merges}
        found += [AddedToken(tokens[text], text, special=True) for text in unlisted if text not in merged]
    return found


def separate_added(
    path: Path, tokens: dict[str, int], added: Sequence[AddedToken]
) -> tuple[dict[str, int], tuple[AddedToken, ...]]:
    """``tokens`` without those that ``added`` also lists, so that plain text can never become one of them.

    CorruptFile: one spelling with two ids, or one id with two spellings, within or between the lists; too many added
    tokens, or one too long.
    """
    check_added_count(len(added), path)
    by_id: dict[int, AddedToken] = {}
    by_text: dict[str, AddedToken] = {}
    for token in added:
        if not token.text:
            raise CorruptFile(path, f"the added token {token.id} has no text")
        if len(token.text) > MAX_ADDED_LENGTH:
            rule, found = f"the added token {token.id} is too long", f"{len(token.text)} characters"
            raise CorruptFile(path, rule, expected=f"at most {MAX_ADDED_LENGTH}", found=found)
        first = by_id.setdefault(token.id, token)
        if first.text != token.text:
            raise CorruptFile(
                path, f"the added token id {token.id} is given twice", found=f"{first.text!a} and {token.text!a}"
            )
        if by_text.setdefault(token.text, token).id != token.id or tokens.get(token.text, token.id) != token.id:
            ids = f"{by_text[token.text].id}, {token.id}" + (
                f" and {tokens[token.text]} in the vocabulary" if token.text in tokens else ""
            )
            raise CorruptFile(path, f"the added token {token.text[:80]!a} has two ids", found=ids)
    rest = {text: number for text, number in tokens.items() if text not in by_text}
    return rest, tuple(by_id.values())
