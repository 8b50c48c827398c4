"""Vocabulary: what a tokenizer file of any format comes down to, and the rules its numbers must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import models

from lluda.errors import CorruptFile
from lluda.inputs.added_tokens import AddedToken
from lluda.inputs.splitting import BYTE_LETTERS, Splitting

MAX_TOKENS = 2**20
"""Limit of ids: the largest vocabularies released have about 260,000."""

MAX_MERGES = 2**19
"""Limit of merge rules: o200k, the largest released, has 446,189."""

_EVERYDAY = frozenset("".join(map(chr, range(0x21, 0x7F))) + "ĠĊ")  # printable ASCII, space, newline as byte letters


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary.

    ``tokens``: id of each ordinary token, spelled in byte letters. ``merges``: pairs in order of rank. ``added``:
    tokens matched by their spelling; not among ``tokens``. ``unused``: ids that stand for nothing (padding of the
    embedding). ``nfc``: text is brought into Unicode form NFC first. ``ignore_merges``: a word that is a token is taken
    whole. ``prefix_ids``: ids a text that is not a chat starts with (the begin-of-text id, where the model wants one).
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

    @property
    def size(self) -> int:
        """Ids in use: the highest that stands for something, plus one."""
        return 1 + max((*self.tokens.values(), *(token.id for token in self.added)))

    def check(self) -> None:
        """CorruptFile: an id given twice, left out or out of range, a token outside the byte letters, no tokens, too
        many tokens or merges."""
        if not self.tokens:
            raise CorruptFile(self.path, "the vocabulary has no tokens")
        for found, limit, word in ((len(self.tokens), MAX_TOKENS, "tokens"), (len(self.merges), MAX_MERGES, "merges")):
            if found > limit:
                raise CorruptFile(self.path, f"too many {word}", expected=f"at most {limit}", found=found)
        self._check_ids()
        letters = set().union(*self.tokens)
        if letters - BYTE_LETTERS:
            letter = min(letters - BYTE_LETTERS)
            token = next(token for token in self.tokens if letter in token)
            raise CorruptFile(self.path, f"the token {token[:80]!a} is not written in byte-level letters")
        if not self.tokens.keys() >= _EVERYDAY:
            missing = min(_EVERYDAY - self.tokens.keys())
            raise CorruptFile(self.path, f"the vocabulary has no token for the single letter {missing!a}")

    def model(self) -> models.BPE:
        """The merging step. CorruptFile: a merge whose parts or result are not ordinary tokens."""
        try:
            return models.BPE(self.tokens, list(self.merges), ignore_merges=self.ignore_merges)
        except Exception:  # the library has no narrower class
            self._raise_bad_merge()

    def _check_ids(self) -> None:
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

    def _raise_bad_merge(self) -> None:
        added = {token.text for token in self.added}
        for index, (left, right) in enumerate(self.merges):
            for part in (left, right, left + right):
                if part not in self.tokens:
                    word = "is an added token" if part in added else "is not in the vocabulary"
                    raise CorruptFile(
                        self.path, f"merge {index + 1} ({left[:40]!a} {right[:40]!a}): {part[:80]!a} {word}"
                    )
        raise CorruptFile(self.path, "the vocabulary and its merges do not make a tokenizer")


def merge_pairs(lines: Sequence[object], path: Path) -> list[tuple[str, str]]:
    """Merges given as ``"left right"`` or as pairs. CorruptFile: anything else, or too many."""
    if len(lines) > MAX_MERGES:
        raise CorruptFile(path, "too many merges", expected=f"at most {MAX_MERGES}", found=len(lines))
    pairs = []
    for index, line in enumerate(lines):
        match line.split(" ") if isinstance(line, str) else line:
            case [str(left), str(right)] if left and right:
                pairs.append((left, right))
            case _:
                raise CorruptFile(path, f"merge {index + 1} is not two tokens with a space between", found=line)
    return pairs


def separate_added(
    path: Path, tokens: dict[str, int], added: Sequence[AddedToken]
) -> tuple[dict[str, int], tuple[AddedToken, ...]]:
    """``tokens`` without those that ``added`` also lists, so that plain text can never become one of them.

    CorruptFile: one spelling with two ids, or one id with two spellings, within or between the lists.
    """
    by_id: dict[int, AddedToken] = {}
    by_text: dict[str, AddedToken] = {}
    for token in added:
        if not token.text:
            raise CorruptFile(path, f"the added token {token.id} has no text")
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
