"""From a name to a local model (rows A1, A2). The only network is a small server of this test's own."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import lluda
from lluda.cli.main import main
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import CorruptFile, InvalidRequest, LludaError, ModelNotFound, UnsupportedModel
from lluda.weights.hub import repository
from lluda.weights.hub.sources import find_source, resolve_model
from lluda.weights.model_folder import TOOL_TEMPLATE
from tests.conftest import TINY_QWEN3, watchdog

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import constants  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_JSON = json.dumps({"weight_map": {"a": A, "b": B}})
FILES = {"config.json": "{}", INDEX: INDEX_JSON, A: "a", B: "b"}

connections: list[object] = []
sys.addaudithook(
    lambda event, args: connections.append(args) if event in {"socket.connect", "socket.getaddrinfo"} else None
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, a Hub that no request can reach, and the current folder elsewhere."""
    root = tmp_path / "cache"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    connections.clear()
    return root


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    assert connections == []


def fill(cache: Path, files: dict[str, str] = FILES, *, name: str = "org/name") -> Path:
    """A snapshot as the Hub's client lays it out; the folder with the links is returned."""
    root = cache / ("models--" + name.replace("/", "--"))
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for file, content in files.items():
        blob = hashlib.sha256(content.encode()).hexdigest()
        (root / "blobs" / blob).write_text(content)
        (snapshot / file).symlink_to(Path("../../blobs") / blob)
    return snapshot


def refuses(name: str | Path, *rules: str, error: type[LludaError] = ModelNotFound) -> None:
    with pytest.raises(error) as caught:
        resolve_model(name)
    for rule in rules:
        assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


# A1: paths


def test_an_existing_folder_or_gguf_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert resolve_model(tmp_path / "model") == tmp_path / "model"
    assert resolve_model(str(tmp_path / "x.gguf")) == tmp_path / "x.gguf"
    assert connections == []


def test_an_existing_relative_folder_wins_over_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "here" / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve_model("org/name") == Path("org/name")
    assert connections == []


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.gguf").touch()
    assert resolve_model("~/x.gguf") == tmp_path / "x.gguf"


@pytest.mark.parametrize(
    "name",
    ["./org/name", "../name", "/absent/model", "~/absent", "~nobody-such/x", "a/b/c", "org/name/", "absent", "",
     "org/name.gguf", "org/NAME.GGUF", "./org/name@main"],
)  # fmt: skip
def test_a1_what_looks_like_a_path_is_never_asked_of_the_hub(name: str) -> None:
    refuses(name, "no such folder or .gguf file")
    assert connections == []


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "give Qwen/Qwen3-0.6B"),
        ("HTTPS://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "give Qwen/Qwen3-0.6B"),
        ("hf://hf.co/Qwen/Qwen3-0.6B", "give Qwen/Qwen3-0.6B"),
        ("https://modelscope.cn/models/Qwen/Qwen3-0.6B", "written org/name"),
    ],
)
def test_c8_an_address_is_told_apart_from_a_path(address: str, advice: str) -> None:
    refuses(address, "an address, not a model", advice)
    assert connections == []


@pytest.mark.parametrize(
    "name", ["org/na me", "org/näme", "org/name@", "-org/name", "org/name\0", "org\\x/name", "o" * 5000 + "/x"]
)
def test_a1_names_no_repository_can_have(name: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve_model(name)
    assert connections == []


def test_a1_each_kind_of_wrong_path_has_its_own_message(tmp_path: Path) -> None:
    empty, bare, gguf = tmp_path / "empty", tmp_path / "bare", tmp_path / "gguf"
    for folder in (empty, bare, gguf):
        folder.mkdir()
    (bare / "notes.txt").touch()
    (gguf / "x.gguf").touch()
    (tmp_path / "y.safetensors").touch()
    refuses(tmp_path / "absent", "no such folder or .gguf file")
    refuses(empty, "an empty folder")
    refuses(bare, "has no config.json; not a model folder")
    refuses(gguf, "has no config.json; to use a GGUF file give it itself", "x.gguf")
    refuses(bare / "notes.txt", "not a model file")
    refuses(tmp_path / "y.safetensors", "a lone safetensors file")
    refuses(bare / "notes.txt" / "deeper", "no such folder")
    assert connections == []


def test_a1_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = tmp_path / "model", tmp_path / "x.gguf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    file.touch()

    def refuse(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("lluda.files.mapped_file.os.open", refuse)
        refuses(file, str(file), "no permission to read it")
        refuses(folder, "config.json", "no permission to read it")
    with monkeypatch.context() as patch:
        patch.setattr("lluda.weights.hub.sources.os.listdir", refuse)
        refuses(folder, str(folder), "no permission to read it")
    with monkeypatch.context() as patch:
        patch.setattr("lluda.weights.hub.sources.Path.stat", refuse)
        refuses(folder, str(folder), "no permission to read it")


def test_a1_a_folder_named_like_a_gguf_file_or_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    refuses(tmp_path / "pipe.gguf", "a regular file is needed", error=CorruptFile)
    (tmp_path / "folder.gguf").mkdir()
    refuses(tmp_path / "folder.gguf", "an empty folder")


# A2: the cache, offline


@pytest.mark.usefixtures("offline")
class TestOffline:
    def test_a2_cold_cache(self) -> None:
        refuses("org/name", "org/name: not in the cache", "HF_HUB_OFFLINE", "hf download org/name")
        refuses("org/name@v1", "org/name@v1: not in the cache", "hf download org/name --revision v1")

    def test_transformers_offline_counts_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("TRANSFORMERS_OFFLINE", "TRUE")
        refuses("org/name", "not in the cache")

    def test_a_complete_snapshot_is_used(self, cache: Path) -> None:
        snapshot = fill(cache)
        assert resolve_model("org/name") == snapshot
        assert resolve_model("org/name@main") == snapshot
        assert resolve_model(f"org/name@{COMMIT}") == snapshot
        assert resolve_model("org/name", revision=COMMIT) == snapshot
        assert resolve_model("org/name@main", revision="main") == snapshot

    def test_a_single_file_snapshot_is_used(self, cache: Path) -> None:
        snapshot = fill(cache, {"config.json": "{}", "model.safetensors": "x"})
        assert resolve_model("org/name") == snapshot

    def test_a2_another_revision_than_the_cached_one(self, cache: Path) -> None:
        fill(cache)
        refuses("org/name@refs/pr/1", "org/name@refs/pr/1: not in the cache", "--revision refs/pr/1")

    @pytest.mark.parametrize("missing", [A, B, "config.json", INDEX])
    def test_a2_half_downloaded_snapshot_names_the_missing_file(self, cache: Path, missing: str) -> None:
        snapshot = fill(cache)
        (snapshot / missing).unlink()
        (snapshot.parent.parent / "blobs" / "0af3.incomplete").touch()
        refuses(
            "org/name", "incomplete (1 unfinished download in the cache)", f"{missing} missing", "hf download org/name"
        )

    def test_a2_a_link_whose_blob_is_gone(self, cache: Path) -> None:
        snapshot = fill(cache)
        (snapshot / B).resolve().unlink()
        refuses("org/name", "incomplete", f"{B} missing")

    def test_a2_what_only_the_client_knows_to_be_missing(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        snapshot = fill(cache)

        def incomplete(*_: object, **__: object) -> str:
            error = huggingface_hub.errors.LocalEntryNotFoundError("1 file(s) are missing (vocab.json).")
            error.snapshot_path = str(snapshot)
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
        refuses("org/name", "missing (vocab.json)", "hf download org/name")

    def test_a7_a_traversing_index_in_the_cache(self, cache: Path) -> None:
        fill(cache, FILES | {INDEX: json.dumps({"weight_map": {"a": "../../x.safetensors"}})})
        refuses("org/name", "without folders", error=CorruptFile)

    def test_two_revisions_must_agree(self) -> None:
        with pytest.raises(InvalidRequest, match=r"'v1'.*'v2'"):
            resolve_model("org/name@v1", revision="v2")


# A2: the Hub unreachable


def test_a2_an_unreachable_hub_and_a_cold_cache() -> None:
    refuses("org/name", "org/name: not in the cache", "the Hub cannot be reached", "hf download org/name")


def test_a2_an_unreachable_hub_and_a_warm_cache_warns(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = fill(cache)
    with caplog.at_level(logging.WARNING, "lluda"):
        assert resolve_model("org/name") == snapshot
    assert "cannot be reached" in caplog.text
    (snapshot / B).unlink()
    refuses("org/name", "incomplete", f"{B} missing", "cannot be reached")


def test_a2_a_silent_hub_is_not_waited_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(repository, "_TIMEOUT_S", 0.2)
        with watchdog(1):
            refuses("org/name", "the Hub cannot be reached", "hf download org/name")


# The Hub itself, as far as this module uses it


class FakeHub(ThreadingHTTPServer):
    """One repository of text files; records what was asked."""

    daemon_threads = True

    def __init__(self, files: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.status, self.code = 200, ""
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.gated: set[str] = set()
        self.sizes: dict[str, int] = {}

    @property
    def fetched(self) -> list[str]:
        """The files that were asked for, in order, each once."""
        return list(dict.fromkeys(path.split("/", 5)[5] for path in self.asked if not path.startswith("/api/")))


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.path)
        if server.status != 200:
            self._answer(server.status, "{}", {"X-Error-Code": server.code})
        elif self.path.startswith("/api/models/org/name/tree/"):  # what the client's command line asks
            tree = [{"type": "file", "path": name, "size": 4, "oid": "0" * 40} for name in server.files]
            self._answer(200, json.dumps(tree), {})
        elif self.path.startswith("/api/models/org/name"):
            files = [
                {"rfilename": name, "size": server.sizes.get(name, len(content))}
                for name, content in server.files.items()
            ]
            self._answer(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": files}), {})
        elif self.path.startswith("/org/name/resolve/"):
            self._answer_file(self.path.split("/", 5)[5])  # /org/name/resolve/<revision>/<file>
        else:
            self._answer(404, "", {})

    def _answer_file(self, name: str) -> None:
        if name in self.server.gated:
            self._answer(403, "", {"X-Error-Code": "GatedRepo"})
        elif name in self.server.broken or name not in self.server.files:
            self._answer(404, "", {"X-Error-Code": "EntryNotFound"})
        else:
            content = self.server.files[name]
            tag = hashlib.sha256(content.encode()).hexdigest()
            self._answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    def _answer(self, status: int, content: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(dict(FILES))
    endpoint = f"http://127.0.0.1:{fake.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield fake
    fake.shutdown()
    fake.server_close()


def test_a_model_is_fetched_then_found_offline(server: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files |= {"modeling_x.py": "x", "pytorch_model.bin": "x", "sub/extra.json": "{}", "merges.txt": "m"}
    server.files[TOOL_TEMPLATE] = "tools"
    folder = resolve_model("org/name")
    assert folder == cache / "models--org--name" / "snapshots" / COMMIT
    assert {path.name for path in folder.iterdir()} == {*FILES, "merges.txt", "additional_chat_templates"}
    assert (folder / TOOL_TEMPLATE).read_text() == "tools"
    assert (folder / B).read_text() == "b"
    assert not any(path.endswith((".py", ".bin", "extra.json")) for path in server.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(server.asked)
    assert resolve_model("org/name") == folder
    assert len(server.asked) == asked


def test_a2_a_half_downloaded_snapshot_is_completed(server: FakeHub, cache: Path) -> None:
    snapshot = fill(cache)
    (snapshot / B).unlink()
    assert resolve_model("org/name") == snapshot
    assert (snapshot / B).read_text() == "b"


def test_a2_a_download_that_fails_says_how_to_go_on(server: FakeHub) -> None:
    server.broken = {B}
    refuses("org/name", "org/name: the download failed", "hf download org/name")


def test_c7_a_repository_whose_index_lists_a_shard_it_has_not(server: FakeHub) -> None:
    del server.files[B]
    refuses("org/name", f"its {INDEX} names {B}, which it does not hold")
    assert A not in server.fetched


def test_a12_a_repository_of_pickles_is_refused_before_any_download(server: FakeHub) -> None:
    server.files = {"config.json": "{}", "pytorch_model.bin": "x"}
    refuses("org/name", "pytorch_model.bin", "convert them to safetensors", error=UnsupportedModel)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        (["x.gguf"], "hf download org/name x.gguf"),
        (["README.md"], "holds no weights"),
        (["model.safetensors"], "has no config.json"),
    ],
)
def test_a1_a_repository_that_is_no_model(server: FakeHub, files: list[str], rule: str) -> None:
    server.files = dict.fromkeys(files, "")
    refuses("org/name", rule)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "code", "rule"),
    [
        (404, "RepoNotFound", "no such model on the Hub, or a private one"),
        (401, "RepoNotFound", "no such model on the Hub, or a private one"),
        (404, "RevisionNotFound", "the model has no such revision"),
        (403, "GatedRepo", "gated; accept its terms"),
        (503, "", "the Hub cannot be reached"),
    ],
)
def test_a1_the_hubs_refusals_have_their_own_messages(server: FakeHub, status: int, code: str, rule: str) -> None:
    server.status, server.code = status, code
    refuses("org/name", "org/name: ", rule)


# C7: what small files tell is judged before a weight is asked for

QWEN3 = {key: value for key, value in TINY_QWEN3.items() if key != "architectures"}
SINGLE = {"config.json": json.dumps(QWEN3), "model.safetensors": "w" * 100}
REFUSED = {
    "FP8": ({"config.json": json.dumps(QWEN3 | {"quantization_config": {"quant_method": "fp8"}})}, "quantiz|quantis"),
    "AWQ": ({"config.json": json.dumps(QWEN3 | {"quantization_config": {"quant_method": "awq"}})}, "quantiz|quantis"),
    "GPTQ": ({"config.json": json.dumps(QWEN3 | {"quantization_config": {"quant_method": "gptq"}})}, "quantiz|quantis"),
    "another architecture": (
        {"config.json": json.dumps(QWEN3 | {"model_type": "gemma3"})},
        "'gemma3' is not supported",
    ),
    "code of its own": (
        {"config.json": json.dumps(QWEN3 | {"auto_map": {"AutoModel": "own.Model"}})},
        "code shipped with the checkpoint",
    ),
    "a pointer as config": ({"config.json": "version https://git-lfs.github.com/spec/v1\n"}, "a Git LFS pointer"),
    "another tokenizer": ({"tokenizer.json": json.dumps({"model": {"type": "Unigram", "vocab": {}}})}, "tokenizer"),
    "a broken tokenizer": ({"tokenizer.json": "<html>"}, "a web page"),
    "a broken generation config": ({"generation_config.json": "[]"}, "must be an object"),
    "a broken index": ({INDEX: "{}"}, "weight_map must be an object"),
    "a traversing index": ({INDEX: json.dumps({"weight_map": {"a": "../x.safetensors"}})}, "without folders"),
    "an index beside a single file": (
        {INDEX: INDEX_JSON, A: "a", B: "b"},
        "--exclude model.safetensors --local-dir DIR",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_c7_is_refused_before_any_weight_is_asked_for(server: FakeHub, case: str) -> None:
    changes, rule = REFUSED[case]
    server.files = SINGLE | changes
    with pytest.raises(LludaError, match=rule) as caught:
        ModelFiles.find("org/name")
    assert str(caught.value).isprintable()
    assert [file for file in server.fetched if file.endswith(".safetensors")] == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"generation_config.json": '{"num_beams": 4}'}, "num_beams 4 asks for a method"),
        ({"chat_template.json": "[]"}, "chat_template.json: .* must be an object"),
        ({"chat_template.json": '{"chat_template": "a"}', "chat_template.jinja": "b"}, "both hold a chat template"),
    ],
)
def test_c7_what_only_an_answer_needs_is_judged_where_one_is_asked_for(
    server: FakeHub, changes: dict[str, str], rule: str
) -> None:
    server.files = SINGLE | changes
    with pytest.raises(LludaError, match=rule):
        lluda.load("org/name")
    assert main(["generate", "-m", "org/name", "hi"]) == 2
    assert [file for file in server.fetched if file.endswith(".safetensors")] == []
    assert ModelFiles.find("org/name").path.is_dir(), "it can be packed, quantised, validated"


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA or PEFT adapter"),
        (["config.json", "consolidated.safetensors"], "their maker's own layout"),
        (["config.json", "model-00001-of-00002.safetensors"], f"neither model.safetensors nor {INDEX}"),
        (["config.json", "model.onnx"], "an ONNX export"),
    ],
)
def test_c7_a_listing_without_a_model_is_refused_without_another_request(
    server: FakeHub, files: list[str], rule: str
) -> None:
    server.files = dict.fromkeys(files, "{}")
    with pytest.raises(LludaError, match=rule):
        resolve_model("org/name")
    assert len(server.asked) == 1


def test_c7_small_files_come_first_and_only_the_indexs_shards_are_fetched(server: FakeHub) -> None:
    extra = ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "x.gguf", "README.md")
    server.files |= {"tokenizer_config.json": "{}", "generation_config.json": "{}", **dict.fromkeys(extra, "x")}
    fetched: list[list[str]] = []
    folder = resolve_model("org/name", check=lambda _: fetched.append(list(server.fetched)))
    assert server.fetched == ["config.json", INDEX, "tokenizer_config.json", "generation_config.json", A, B]
    assert fetched == [server.fetched[:-2]]
    assert not any((folder / name).exists() for name in extra)


def test_c7_what_is_in_the_cache_is_neither_judged_nor_fetched_again(server: FakeHub) -> None:
    folder = resolve_model("org/name")
    server.asked.clear()
    assert resolve_model("org/name", check=lambda _: pytest.fail("judged")) == folder
    assert not {A, B} & set(server.fetched)


def test_c7_too_little_disk_space_is_an_error_before_any_weight_is_fetched(server: FakeHub) -> None:
    server.sizes = {A: 10**15, B: 7}
    with pytest.raises(LludaError, match=r"need 1,000,000,000,000,007 bytes more .*set HF_HOME to a folder"):
        resolve_model("org/name")
    assert not {A, B} & set(server.fetched)


def test_c7_a_plan_fetches_no_weights(server: FakeHub, cache: Path) -> None:
    server.files = SINGLE
    files = ModelFiles.find(find_source("org/name", weights=False))
    assert files.plan(LoadOptions(backend="reference")).parameters > 0
    assert server.fetched == ["config.json"]


def test_c7_a_gated_file_of_an_open_listing(server: FakeHub) -> None:
    server.gated = {"config.json"}
    refuses("org/name", "org/name: gated; accept its terms at https://huggingface.co/org/name", "hf auth login")
    assert server.fetched == ["config.json"]


@pytest.mark.parametrize(
    ("files", "arguments", "path"),
    [
        (["b.Q8_0.gguf", "b.Q4_0.gguf"], "b.Q8_0.gguf", "b.Q8_0.gguf"),
        (
            ["q-00001-of-00002.gguf", "q-00002-of-00002.gguf"],
            "--include 'q-*-of-00002.gguf'",
            "q-00001-of-00002.gguf",
        ),
    ],
)
def test_c7_the_remedy_for_a_repository_of_gguf_files_works(
    server: FakeHub, tmp_path: Path, files: list[str], arguments: str, path: str
) -> None:
    server.files = dict.fromkeys(files, "GGUF") | {"README.md": "r", "pytorch_model.bin": "x"}
    with pytest.raises(ModelNotFound) as caught:
        resolve_model("org/name")
    message = str(caught.value)
    assert f"holds GGUF files ({files[0]}, {files[1]})" in message
    command = f"hf download org/name {arguments} --local-dir DIR"
    assert message.endswith(f"such as DIR/{path} after: {command}")
    # The very command, run by the client's own command line against the same server.
    folder = tmp_path / "fetched"
    words = [str(folder) if word == "DIR" else word for word in shlex.split(command)[1:]]
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
    client = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    subprocess.run([*client, *words], env=environment, check=True, capture_output=True, timeout=120)
    assert resolve_model(folder / path) == folder / path
    wanted = files if "--include" in arguments else files[:1]
    assert sorted(file.name for file in folder.glob("*.gguf")) == sorted(wanted)
