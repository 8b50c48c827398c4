"""Evaluates a checkpoint through lluda on held-out content; prints a line of JSON.

- ``speak CHECKPOINT --set TEACHER --out FOLDER``: speaks the texts of a teacher's set; lengths against the teacher's.
- ``copies CHECKPOINT --codes FOLDER --out FOLDER``: copy-synthesis: the held-out clips of a `CodeSet` through code2wav.
- ``typed CHECKPOINT``: typed questions of every domain; exact answers.
- ``heard CHECKPOINT --set SET``: spoken questions; exact answers, slots, and spoken answers with ``--out FOLDER``.
- ``transcripts CHECKPOINT --set SET``: writes down what is heard; word errors.

What was spoken into a folder is then judged: ``python -m training.judge FOLDER``.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lluda
from lluda.config.code2wav import SAMPLE_RATE
from training.code_set import CodeSet
from training.noises import coloured_noise
from training.speech_folder import SpeechFolder, clips_of
from training.word_errors import Errors, contains, count_errors
from training.world import held_out_turns

WRITE_DOWN = "Write what you hear."
MAX_TOKENS = 64
_NEEDED = {"speak": ("set", "out"), "copies": ("codes", "out"), "typed": (), "heard": ("set",), "transcripts": ("set",)}


def speak_texts(
    checkpoint: Path, teacher: Path, speaker: str, count: int, out: Path, temperature: float | None
) -> dict[str, Any]:
    """Speaks the first texts of a teacher's set; a length counts as right within 15 % of the teacher's."""
    model = lluda.load_speech(checkpoint)
    folder, reasons, right, spoken, wanted = SpeechFolder(out, model.sample_rate), Counter(), 0, 0, 0
    for number, (clip, _, entry) in enumerate(clips_of(teacher, count)):
        params = lluda.SpeechParams(sampling=lluda.SamplingParams(temperature=temperature, seed=number))
        samples, completion = _sound(model.speak(entry["text"], params, speaker=speaker))
        reasons[completion.finish_reason] += 1
        right += abs(len(samples) - len(clip)) <= 0.15 * len(clip)
        spoken, wanted = spoken + len(samples), wanted + len(clip)
        about = {name: entry[name] for name in ("domain", "slot") if name in entry}
        folder.add(samples, entry["text"], seed=number, teacher_samples=len(clip), **about)
    folder.close()
    total = sum(reasons.values())
    return {
        "clips": total,
        "stopped_by_itself": reasons["stop"],
        "length_within_15_percent": round(right / total, 4),
        "length_of_teacher": round(spoken / wanted, 4),
    }


def copy_clips(checkpoint: Path, codes: Path, voice: str, count: int, out: Path) -> dict[str, Any]:
    """The first held-out clips of a voice, coded by the codec and decoded by lluda's code2wav in float32."""
    network = lluda.load_speech(checkpoint, backend="reference", dtype="f32").stack.code2wav
    stored = CodeSet.load(codes)
    clips = [clip for clip in stored.clips if clip.split == "test" and clip.voice == voice][:count]
    folder = SpeechFolder(out, SAMPLE_RATE)
    with torch.inference_mode():
        for clip in clips:
            found = stored.codes[:, clip.first : clip.first + clip.frames].long()
            folder.add(network(found).float().numpy().ravel(), clip.text)
    folder.close()
    return {"clips": len(clips)}


def _sound(events: Iterator[Any]) -> tuple[np.ndarray, lluda.SpeechCompletion]:
    parts, completion = [np.zeros(0, np.float32)], None
    for event in events:
        if isinstance(event, lluda.SpeechChunk):
            parts.append(event.samples)
        elif isinstance(event, lluda.SpeechCompletion):
            completion = event
    assert completion is not None
    return np.concatenate(parts), completion


def answer_typed(checkpoint: Path, count: int, seed: int, domain: str | None, report: Any) -> dict[str, Any]:
    """Exact answers to held-out questions, all together and by domain, or of one domain."""
    model, score = lluda.load(checkpoint), _Score()
    for turn in held_out_turns(count, seed, domain):
        told = model.chat([{"role": "user", "content": turn.question}], temperature=0.0, max_tokens=MAX_TOKENS).text
        score.add(turn.domain, turn.question, turn.answer, told, turn.slot, report)
    return score.summary()


def answer_heard(
    checkpoint: Path, heard: Path, count: int, noise: float | None, out: Path | None, speaker: str | None, report: Any
) -> dict[str, Any]:
    """Exact answers to spoken questions; earlier turns are typed. With `out` the answers are spoken too."""
    model, score = lluda.load(checkpoint), _Score()
    folder = SpeechFolder(out, model.speech_stack().sample_rate) if out else None
    for number, (clip, rate, entry) in enumerate(clips_of(heard, count)):
        messages = _conversation(entry, _in_noise(clip, noise, number), rate)
        sampling = lluda.SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
        if folder:
            speech = lluda.SpeechParams(sampling=lluda.SamplingParams(seed=number))
            events = list(model.speak(messages, sampling, speech, speaker=speaker))
            told = next(event.text for event in events if isinstance(event, lluda.Completion))
            about = {"slot": entry["slot"], "domain": entry["domain"], "question": entry["text"], "written": told}
            folder.add(_sound(iter(events))[0], entry["answer"], **about)
        else:
            told = model.chat(messages, sampling).text
        score.add(entry["domain"], entry["text"], entry["answer"], told, entry["slot"], report)
    if folder:
        folder.close()
    return score.summary()


def write_down(checkpoint: Path, heard: Path, count: int, noise: float | None, report: Any) -> dict[str, Any]:
    """Word errors of what the model writes down of each clip, whatever was asked in it."""
    model, errors, clips = lluda.load(checkpoint), Errors(), 0
    for number, (clip, rate, entry) in enumerate(clips_of(heard, count)):
        messages = _conversation({"instruction": WRITE_DOWN}, _in_noise(clip, noise, number), rate)
        told = model.chat(messages, temperature=0.0, max_tokens=MAX_TOKENS).text
        found = count_errors(entry["text"], told)
        errors, clips = errors + found, clips + 1
        _report(report, {"text": entry["text"], "heard": told, "errors": found.total, "words": found.words})
    return {"clips": clips, "words": errors.words, "wer": round(errors.rate, 4)}


def _conversation(entry: dict[str, Any], clip: np.ndarray, rate: int) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": entry["system"]}] if entry.get("system") else []
    for question, answer in entry.get("before", []):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    content: list[dict[str, Any]] = [{"type": "audio", "audio": clip, "sampling_rate": rate}]
    if entry.get("instruction"):
        content.append({"type": "text", "text": entry["instruction"]})
    return [*messages, {"role": "user", "content": content}]


def _in_noise(clip: np.ndarray, decibel: float | None, seed: int) -> np.ndarray:
    """The clip with pink noise so many decibels below it; None leaves it clean."""
    if decibel is None:
        return clip
    noise = coloured_noise(1, len(clip), torch.tensor([0.5]), torch.Generator().manual_seed(seed))[0].numpy()
    level = np.sqrt(np.square(clip).mean()) * 10 ** (-decibel / 20)
    return (clip + level * noise).clip(-1, 1).astype(np.float32)


class _Score:
    """Exact answers and slots found, by domain."""

    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()
        self._exact: Counter[str] = Counter()
        self._slots = 0

    def add(self, domain: str, question: str, answer: str, told: str, slot: str, report: Any) -> None:
        self._asked[domain] += 1
        self._exact[domain] += told == answer
        self._slots += contains(told, slot)
        _report(report, {"domain": domain, "question": question, "answer": answer, "told": told})

    def summary(self) -> dict[str, Any]:
        total = self._asked.total()
        domains = {name: f"{self._exact[name]}/{asked}" for name, asked in sorted(self._asked.items())}
        exact, slots = round(self._exact.total() / total, 4), round(self._slots / total, 4)
        return {"questions": total, "exact": exact, "slot": slots, "domains": domains}


def _report(report: Any, entry: dict[str, Any]) -> None:
    if report is not None:
        report.write(json.dumps(entry, ensure_ascii=False) + "\n")
        report.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speak", "copies", "typed", "heard", "transcripts"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--set", type=Path, help="a set of make_sound: the teacher's speech, or spoken questions")
    parser.add_argument("--codes", type=Path, help="a CodeSet, of copies")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the list of typed questions")
    parser.add_argument("--domain", help="of typed questions; all without")
    parser.add_argument("--speaker", default="lark")
    parser.add_argument("--temperature", type=float, help="of speech; the checkpoint's own without")
    parser.add_argument("--noise", type=float, metavar="DB", help="pink noise so many decibels below each clip")
    parser.add_argument("--out", type=Path, help="the folder of WAV files for the judge")
    parser.add_argument("--report", type=Path, help="a line of JSON for every clip or question")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = _parser()
    given = parser.parse_args(arguments)
    for name in _NEEDED[given.what]:
        if getattr(given, name) is None:
            parser.error(f"{given.what} needs --{name} FOLDER")
    report = given.report.open("w", encoding="utf-8") if given.report else None
    match given.what:
        case "speak":
            result = speak_texts(given.checkpoint, given.set, given.speaker, given.count, given.out, given.temperature)
        case "copies":
            result = copy_clips(given.checkpoint, given.codes, given.speaker, given.count, given.out)
        case "typed":
            result = answer_typed(given.checkpoint, given.count, given.seed, given.domain, report)
        case "heard":
            where = given.checkpoint, given.set, given.count, given.noise
            result = answer_heard(*where, given.out, given.speaker, report)
        case _:
            result = write_down(given.checkpoint, given.set, given.count, given.noise, report)
    if report:
        report.close()
    print(json.dumps({"what": given.what, "set": given.set and given.set.name, "noise": given.noise} | result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
