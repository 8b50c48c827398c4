"""tokenizer.json (the tokenizers library's file), read strictly: byte-level BPE, and nothing that changes its ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.files.json_file import read_json_object
from lluda.inputs.text.added_tokens import AddedToken
from lluda.inputs.text.byte_level import LETTERS
from lluda.inputs.text.special_tokens import SpecialTokens
from lluda.inputs.text.splitting import splitting_from_json
from lluda.inputs.text.vocabulary import Vocabulary, check_added_count, mark_special, merge_pairs, separate_added

MAX_FILE_BYTES = 64 * 2**20
"""Limit of a tokenizer file's size: the largest released have about 33 MB."""


_MOST_PREFIX_IDS = 64
"""Ids before a text; released models put one there."""


def vocabulary_from_tokenizer_json(path: Path, more: Sequence[AddedToken], special: SpecialTokens) -> Vocabulary:
    """The vocabulary in ``path``. ``more`` are added tokens of the files beside it; of one that both list, the flags
    here hold. ``special`` names those that are special, whatever the flags say.

    CorruptFile: the file breaks its format. UnsupportedModel: another kind of tokenizer, or a step that is not
    implemented.
    """
    content = read_json_object(path, max_bytes=MAX_FILE_BYTES)
    model = field(content, "model", dict, path)
    _refuse_other_kinds(content, model, path)
    tokens = field(model, "vocab", dict, path)
    _refuse_settings(model, tokens, path)
    listed = field(content, "added_tokens", list, path, default=[])
    check_added_count(len(listed), path)
    added = [added_token(each, path) for each in listed]
    known = {token.id: token.text for token in added}
    added += [token for token in more if known.get(token.id) != token.text]
    merges = merge_pairs(field(model, "merges", list, path), path)
    tokens, separate = separate_added(path, tokens, mark_special(added, special.texts, tokens, merges))
    return Vocabulary(
        path,
        tokens,
        merges,
        separate,
        splitting_from_json(content.get("pre_tokenizer"), path),
        nfc=_is_nfc(content.get("normalizer"), path),
        ignore_merges=flag(model, "ignore_merges", path),
        prefix_ids=_prefix(content.get("post_processor"), path),
        end_ids=named_ids(special.ends, separate, tokens),
    )


def named_ids(texts: Iterable[str], added: Iterable[AddedToken], tokens: Mapping[str, int]) -> tuple[int, ...]:
    """Ids of the tokens so spelled, those of them that there are."""
    ids = {**tokens, **{token.text: token.id for token in added}}
    return tuple(dict.fromkeys(ids[text] for text in texts if text in ids))


def added_token(fields: Any, path: Path) -> AddedToken:
    """A token as tokenizer.json and tokenizer_config.json write it. CorruptFile: of another form. UnsupportedModel: it
    takes white space along, or whole words alone."""
    match fields:
        case {"id": int(number), "content": str(text)} if not isinstance(number, bool):
            for name in ("lstrip", "rstrip", "single_word"):
                if flag(fields, name, path):
                    raise UnsupportedModel(f"{path}: added token {text[:80]!a}: {name} is not implemented")
            special = flag(fields, "special", path)
            return AddedToken(number, text, special, flag(fields, "normalized", path, default=not special))
    raise CorruptFile(path, "an added token must have an integer id and a text content", found=fields)


def flag(parent: dict[str, Any], name: str, path: Path, *, default: bool = False) -> bool:
    """A switch; CorruptFile if it is neither true nor false. Null and absent mean ``default``."""
    value = parent.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CorruptFile(path, f"{name} must be true or false", found=value)
    return value


def field(
    parent: dict[str, Any], name: str, kind: type[dict[str, Any]] | type[list[Any]], path: Path, default: Any = None
) -> Any:
    """An object or array; CorruptFile if it is neither that nor, where there is a ``default``, absent or null."""
    value = parent.get(name)
    value = default if value is None else value
    if not isinstance(value, kind):
        raise CorruptFile(
            path, f"{name} must be an {'object' if kind is dict else 'array'}", found=type(value).__name__
        )
    return value


def _refuse_other_kinds(content: dict[str, Any], model: dict[str, Any], path: Path) -> None:
    """UnsupportedModel: not byte-level BPE. Other kinds store their vocabulary in other forms."""
    decoder = content.get("decoder")
    if model.get("type", "BPE") != "BPE" or not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        found = f"{model.get('type')} with decoder {decoder.get('type') if isinstance(decoder, dict) else decoder}"
        raise UnsupportedModel(f"{path}: only byte-level BPE tokenizers are read, not {found[:80]!a}")


def _refuse_settings(model: dict[str, Any], tokens: dict[str, Any], path: Path) -> None:
    """UnsupportedModel: a setting that would change the ids and is not implemented."""
    settings = ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]
    if not tokens.keys() >= LETTERS:  # with every letter in the vocabulary these two never come into play
        settings += ["unk_token", "byte_fallback"]
    for name in settings:
        if model.get(name):
            raise UnsupportedModel(f"{path}: the BPE setting {name} = {model[name]!r:.60} is not implemented")


def _is_nfc(normalizer: Any, path: Path) -> bool:
    """Whether text is brought into NFC first, the one normalizer that is implemented."""
    kinds = {step["type"] for step in _steps(normalizer, "normalizer", "normalizers", path)}
    if kinds - {"NFC"}:
        raise UnsupportedModel(f"{path}: only the normalizer NFC is implemented, not {sorted(kinds - {'NFC'})!a:.80}")
    return "NFC" in kinds


def _steps(step: Any, name: str, many: str, path: Path) -> list[dict[str, Any]]:
    """A step of the pipeline as a list: none, itself, or those of a Sequence. CorruptFile: no step at all."""
    if step is None:
        return []
    is_sequence = isinstance(step, dict) and step.get("type") == "Sequence"
    steps = step.get(many) if is_sequence else [step]
    if not isinstance(steps, list) or not all(
        isinstance(one, dict) and isinstance(one.get("type"), str) for one in steps
    ):
        raise CorruptFile(path, f"{name} is neither a step with a type nor a Sequence of such", found=step)
    return steps


def _prefix(processor: Any, path: Path) -> tuple[int, ...]:
    """Ids that the post-processor's template puts before a single text."""
    for step in _steps(processor, "post_processor", "processors", path):
        if step["type"] == "TemplateProcessing":
            return _template_prefix(step, path)
    return ()


def _template_prefix(step: dict[str, Any], path: Path) -> tuple[int, ...]:
    ids: list[Any] = []
    special = field(step, "special_tokens", dict, path, default={})
    for part in field(step, "single", list, path):
        match part:
            case {"SpecialToken": {"id": str(name)}}:
                token = special.get(name)
                ids += token["ids"] if isinstance(token, dict) and isinstance(token.get("ids"), list) else [None]
            case _:
                break
        if len(ids) > _MOST_PREFIX_IDS:
            rule = "post_processor puts too many ids before a text"
            raise CorruptFile(path, rule, expected=f"at most {_MOST_PREFIX_IDS}", found=len(ids))
    if not all(type(number) is int for number in ids):
        raise CorruptFile(path, "post_processor: a token of the template is not among its special_tokens")
    return tuple(ids)
