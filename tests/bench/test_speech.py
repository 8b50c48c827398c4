"""Speech and sound: sessions in this process, a whole run on a tiny Omni model with real workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lluda.bench.engines import ENGINES, Engine
from lluda.bench.engines.lluda_speech import LludaSpeech
from lluda.bench.measured.speech import FRAMES, PROMPT_ROWS, SpeechSession, measure_speech
from lluda.bench.process.job import Job, Plan
from lluda.bench.runner import Settings, run_bench
from lluda.cli.main import main
from lluda.config.code2wav import SAMPLE_RATE
from lluda.engine.loading.model_files import ModelFiles
from tests.cli.omni import write_speaking_omni
from tests.conftest import TINY_QWEN3

MS = {"code_predictor": "ms", "talker": "ms", "speech_frame": "ms", "code2wav25": "ms", "audio10s": "ms"}
STREAMED = {"frames1": "ms", "frames4": "ms", "code2wav1": "ms", "first_audio": "s", "rtf": "of real time"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_omni(tmp_path_factory.mktemp("omni") / "speaking")


def job_for(folder: Path, *tests: str, engine: str = "lluda", name: str = "BF16") -> Job:
    text = ModelFiles.find(folder).config.text
    return Job(engine=engine, model=str(folder), format=name, vocab_size=text.vocab_size, plan=Plan(tests=tests))


def theirs(folder: Path) -> SpeechSession:
    pytest.importorskip("transformers", reason="transformers is an optional peer (lluda[bench])")
    from lluda.bench.engines.transformers_speech import open_session

    return open_session(job_for(folder, "speech", engine="transformers"))


def test_each_test_asks_for_its_own_components_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    from lluda.bench import source

    load = source.load_parameters

    def seen(files: ModelFiles, options: object, specs: list) -> object:  # type: ignore[type-arg]
        loaded.extend(spec.name for spec in specs)
        return load(files, options, specs)

    monkeypatch.setattr(source, "load_parameters", seen)
    opened: list[SpeechSession] = []
    samples = list(measure_speech(job_for(folder, "audio"), LludaSpeech, opened.append))
    assert [(sample.test, sample.unit) for sample in samples] == [("audio10s", "ms")]
    assert all(name.startswith("thinker.audio_tower.") for name in loaded)
    assert [session.info.format for session in opened] == ["BF16"]
    loaded.clear()
    list(measure_speech(job_for(folder, "speech"), LludaSpeech, opened.append))
    assert {name for name in loaded if name.startswith("thinker.")} == {"thinker.model.embed_tokens.weight"}


def test_transformers_is_measured_at_what_it_can_do(folder: Path) -> None:
    session = theirs(folder)
    samples = list(measure_speech(job_for(folder, "speech", "audio"), lambda _job: session, lambda _session: None))
    assert {sample.test: sample.unit for sample in samples} == MS
    assert all(sample.value > 0 for sample in samples)
    reads = {sample.test for sample in samples if sample.reads}
    assert reads == {"code_predictor", "talker", "speech_frame"}


def test_both_engines_do_the_same_work(folder: Path) -> None:
    ours, reference = LludaSpeech(job_for(folder, "speech")), theirs(folder)
    for session in (ours, reference):
        session.start(PROMPT_ROWS)
    # Both are BF16 of the same weights after the same prompt.
    a, b = ours._frames.logits.float(), reference._logits[0].float()  # type: ignore[attr-defined]
    assert float((a - b).abs().max()) < 0.05 * float(b.max() - b.min())
    for session in (ours, reference):
        for _ in range(3):
            session.frame()
            session.step()
    assert ours._frames.cache.length == reference._cache.get_seq_length() == PROMPT_ROWS + 3  # type: ignore[attr-defined]
    # Norms are float32 in lluda's memory.
    for mine, other in (
        (ours.traffic.code_predictor, reference.traffic.code_predictor),
        (ours.traffic.talker, reference.traffic.talker),
    ):
        assert other <= mine < 1.1 * other


def test_transformers_thinker_answers_as_its_reference_does(folder: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is an optional peer (lluda[bench])")
    from lluda.bench.engines.transformers import open_session
    from lluda.engine.prompt_rows import PromptRows
    from lluda.evaluation.transformers_components import TransformersComponents

    ids = [5, 3, 8, 2]
    session = open_session(job_for(folder, "tg", engine="transformers"))
    step = TransformersComponents(folder, "bf16", float64=False).decoder(PromptRows(ids)).start()
    token = int(step(ids)[-1].argmax())
    assert session.start([ids, ids]) == [token, token]
    for _ in range(3):
        following = int(step([token])[-1].argmax())
        assert session.step([token, token]) == [following, following]
        token = following
    assert session.info.bytes_per_weight == 2.0


def test_no_frame_ends_the_speech(folder: Path) -> None:
    session = LludaSpeech(job_for(folder, "speech"))
    session.start(PROMPT_ROWS)
    for _ in range(FRAMES):
        assert session._frames.next_codes() is not None
        session.step()
    first, factor = session.speak(FRAMES)
    whole = factor * session._stack.samples(FRAMES) / SAMPLE_RATE
    assert 0 < first < whole, "sound is there before the end"


def test_a_run_has_a_row_for_each_test_and_says_who_has_none(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "mistralrs", Engine("lluda.bench.engines.mistralrs", "json", "no-such"))
        plan = Plan(tests=("tg", "speech", "audio"), generate=2)
        report = run_bench(str(folder), Settings(plan=plan, repeat=1, threads=1, timeout=120))
        assert [state.status for state in report.engines] == ["ok"], report.engines
        assert {row.test: row.unit for row in report.rows} == {"tg2": "tok/s", "tg2_sampled": "tok/s"} | MS | STREAMED
        shares = {row.test for row in report.rows if row.roofline_fraction is not None}
        assert shares == {"tg2", "tg2_sampled", "code_predictor", "talker", "speech_frame"}
        settings = Settings(against=("mistralrs",), plan=Plan(tests=("audio",)), repeat=1, threads=1, timeout=120)
        state = run_bench(str(folder), settings).engines[-1]
    assert (state.status, state.engine) == ("not supported", "mistralrs")
    assert "audio" in state.detail


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (True, ["--tests", "speech"], "needs an Omni model"),
        (True, ["--tests", "tg,audio"], "needs an Omni model"),
        (False, ["--tests", "speech", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
    ],
)
def test_speech_that_cannot_be_measured_is_refused_before_anything_is(
    text: bool, arguments: list[str], message: str, folder: Path, checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("lluda.bench.runner.run_worker", lambda *_: pytest.fail("something was measured"))
    model = checkpoint(TINY_QWEN3) if text else folder
    assert main(["bench", "-m", str(model), *arguments]) == 2
    assert message in capsys.readouterr().err
