"""The tokenizer files of a model folder: tokenizer.json, or vocab.json with merges.txt as the Qwen2 family has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, ModelNotFound, UnsupportedModel
from lluda.inputs.added_tokens import AddedToken
from lluda.inputs.byte_level import LETTERS
from lluda.inputs.splitting import QWEN2, splitting_from_json
from lluda.inputs.text_file import read_text
from lluda.inputs.vocabulary import Vocabulary, merge_pairs, separate_added
from lluda.json_file import read_json_object

CONFIG_NAME = "tokenizer_config.json"

MAX_FILE_BYTES = 64 * 2**20
"""Limit of a tokenizer file's size: the largest released have about 33 MB."""

MAX_CONFIG_BYTES = 16 * 2**20
"""Limit of tokenizer_config.json: the largest released have about 2 MB."""


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none."""
    path = folder / CONFIG_NAME
    return read_json_object(path, max_bytes=MAX_CONFIG_BYTES) if path.exists() else {}


def token_text(value: object) -> str | None:
    """The spelling of a token in tokenizer_config.json: a string, or an object with ``content``."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def vocabulary_from_folder(folder: Path) -> Vocabulary:
    """The vocabulary in ``folder``.

    ModelNotFound: no tokenizer files. CorruptFile: a file breaks its format. UnsupportedModel: a kind of tokenizer
    other than byte-level BPE split by a rule of `splitting.SPLITTINGS`.
    """
    if (folder / "tokenizer.json").exists():
        return _from_tokenizer_json(folder / "tokenizer.json", read_tokenizer_config(folder))
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _from_vocab_and_merges(folder, read_tokenizer_config(folder))
    raise ModelNotFound(
        f"{folder}: no tokenizer (tokenizer.json, or vocab.json with merges.txt); copy it from the released model"
    )


def _from_tokenizer_json(path: Path, config: dict[str, Any]) -> Vocabulary:
    content = read_json_object(path, max_bytes=MAX_FILE_BYTES)
    model = _field(content, "model", dict, path)
    tokens = _field(model, "vocab", dict, path)
    _refuse_other_kinds(content, model, tokens, path)
    added = [_added(each, path) for each in _field(content, "added_tokens", list, path, default=[])]
    known = {token.id: token.text for token in added}
    # tokenizer_config.json may add tokens; where both list one, tokenizer.json's flags hold.
    more = _added_decoder(config, path.with_name(CONFIG_NAME))
    added += [token for token in more if known.get(token.id) != token.text]
    tokens, separate = separate_added(path, tokens, added)
    return Vocabulary(
        path,
        tokens,
        merge_pairs(_field(model, "merges", list, path), path),
        separate,
        splitting_from_json(content.get("pre_tokenizer"), path),
        nfc=_is_nfc(content.get("normalizer"), path),
        ignore_merges=model.get("ignore_merges") is True,
        prefix_ids=_prefix(content.get("post_processor"), path),
    )


def _from_vocab_and_merges(folder: Path, config: dict[str, Any]) -> Vocabulary:
    kind = config.get("tokenizer_class")
    if kind not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise UnsupportedModel(
            f"{folder / 'tokenizer_config.json'}: tokenizer_class {kind!r:.60}: vocab.json with merges.txt is read for "
            "Qwen2Tokenizer only; use the model's tokenizer.json"
        )
    path, merges_path, config_path = folder / "vocab.json", folder / "merges.txt", folder / CONFIG_NAME
    tokens = read_json_object(path, max_bytes=MAX_FILE_BYTES)
    tokens, added = separate_added(config_path, tokens, _added_decoder(config, config_path))
    merges = _merge_lines(merges_path)
    prefix: tuple[int, ...] = ()
    if config.get("add_bos_token") is True:
        start = token_text(config.get("bos_token"))
        prefix = tuple(token.id for token in added if token.text == start)
    return Vocabulary(path, tokens, merges, added, QWEN2, nfc=True, prefix_ids=prefix, merges_path=merges_path)


def _merge_lines(path: Path) -> list[tuple[str, str]]:
    lines = read_text(path, MAX_FILE_BYTES).split("\n")  # splitlines would also cut at letters that stand for bytes
    if lines and lines[0].startswith("#version"):
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return merge_pairs(lines, path)


def _added_decoder(config: dict[str, Any], path: Path) -> list[AddedToken]:
    """``added_tokens_decoder`` of tokenizer_config.json: id as text -> token."""
    tokens = []
    for number, fields in _field(config, "added_tokens_decoder", dict, path, default={}).items():
        if not (number.isascii() and number.isdecimal() and len(number) < 10 and isinstance(fields, dict)):
            raise CorruptFile(path, "added_tokens_decoder must map ids to tokens", found=number)
        tokens.append(_added({**fields, "id": int(number)}, path))
    return tokens


def _added(fields: Any, path: Path) -> AddedToken:
    match fields:
        case {"id": int(number), "content": str(text)} if not isinstance(number, bool):
            for flag in ("lstrip", "rstrip", "single_word"):
                if fields.get(flag):
                    raise UnsupportedModel(f"{path}: added token {text[:80]!a}: {flag} is not implemented")
            special = bool(fields.get("special"))
            return AddedToken(number, text, special, bool(fields.get("normalized", not special)))
    raise CorruptFile(path, "an added token must have an integer id and a text content", found=fields)


def _refuse_other_kinds(content: dict[str, Any], model: dict[str, Any], tokens: dict[str, Any], path: Path) -> None:
    """UnsupportedModel: not byte-level BPE, or a setting that would change its ids and is not implemented."""
    decoder = content.get("decoder")
    if model.get("type", "BPE") != "BPE" or not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        found = f"{model.get('type')} with decoder {decoder.get('type') if isinstance(decoder, dict) else decoder}"
        raise UnsupportedModel(f"{path}: only byte-level BPE tokenizers are read, not {found:.80}")
    settings = ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]
    if not tokens.keys() >= LETTERS:  # with every letter in the vocabulary these two never come into play
        settings += ["unk_token", "byte_fallback"]
    for name in settings:
        if model.get(name):
            raise UnsupportedModel(f"{path}: the BPE setting {name} = {model[name]!r:.60} is not implemented")


def _is_nfc(normalizer: Any, path: Path) -> bool:
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else [normalizer]
    kinds = [step.get("type", step) if isinstance(step, dict) else step for step in steps or ()]
    if any(kind not in (None, "NFC") for kind in kinds):
        raise UnsupportedModel(f"{path}: only the normalizer NFC is implemented, not {', '.join(map(str, kinds)):.80}")
    return "NFC" in kinds


def _prefix(processor: Any, path: Path) -> tuple[int, ...]:
    """Ids that the post-processor's template puts before a single text."""
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            return _template_prefix(step, path)
    return ()


def _template_prefix(step: dict[str, Any], path: Path) -> tuple[int, ...]:
    ids: list[Any] = []
    for part in _field(step, "single", list, path):
        match part:
            case {"SpecialToken": {"id": str(name)}}:
                token = _field(step, "special_tokens", dict, path).get(name)
                ids += token["ids"] if isinstance(token, dict) and isinstance(token.get("ids"), list) else [None]
            case _:
                break
    if not all(isinstance(number, int) for number in ids):
        raise CorruptFile(path, "post_processor: a token of the template is not among its special_tokens")
    return tuple(ids)


def _field(
    parent: dict[str, Any], name: str, kind: type[dict[str, Any]] | type[list[Any]], path: Path, default: Any = None
) -> Any:
    value = parent.get(name)
    value = default if value is None else value
    if not isinstance(value, kind):
        raise CorruptFile(
            path, f"{name} must be an {'object' if kind is dict else 'array'}", found=type(value).__name__
        )
    return value
