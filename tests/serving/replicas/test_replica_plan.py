"""How many replicas of what; what a replica hears of its end; the counters of all."""

from __future__ import annotations

import os
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lluda.errors import InvalidRequest
from lluda.serving.metrics import Metrics
from lluda.serving.replicas import membership
from lluda.serving.replicas.all_metrics import merged
from lluda.serving.replicas.app_arguments import AppArguments
from lluda.serving.replicas.plan import on_this_machine, replica_range
from lluda.serving.settings import Settings
from tests.test_names import ROOT


@pytest.mark.parametrize("text", ["", "three", "1:", ":2", "1:2:3"])
def test_what_is_no_number_of_replicas(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"--replicas 3, or .* --replicas 1:4"):
        replica_range(text)


@pytest.mark.parametrize("text", ["0", "-1", "3:2"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(InvalidRequest, match="must be from 1 on"):
        on_this_machine("m", Settings(), {}, text)


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, 0),
        ({"device": "cuda"}, 1),
        ({"device": "cuda", "place": "experts=cpu"}, 1),
        ({"device": "cpu", "place": "thinker=cuda:0, code2wav=cuda:1"}, 2),
        ({"place": {"thinker": "cuda:1"}}, 1),
        ({"device": "cuda", "tensor_parallel": 2}, 2),
    ],
)
def test_gpus_of_a_replica(options: dict[str, object], gpus: int) -> None:
    assert on_this_machine("m", Settings(), options, "1:4").gpus == gpus


def test_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    plan = on_this_machine("m", Settings(), {"threads": None}, "1:3")
    assert (plan.least, plan.most, plan.cpus, plan.options["threads"]) == (1, 3, 2, 2)
    assert on_this_machine("m", Settings(), {"threads": 5}, "3").cpus == 5
    sharded = on_this_machine("m", Settings(), {"threads": None, "tensor_parallel": 2}, "2")
    assert (sharded.cpus, sharded.options["threads"]) == (4, 2), "each rank has its threads"


def test_arguments_of_a_config_are_a_plan() -> None:
    given = {"model": "m", "replicas": "1:4", "gpus": 1, "load": {"device": "cuda"}, "limits": {"running": 8}}
    plan = AppArguments.read(given).plan()
    assert (plan.model, plan.least, plan.most, plan.gpus, plan.options) == ("m", 1, 4, 1, {"device": "cuda"})
    assert plan.settings.limits.running == 8
    assert AppArguments.read({"replicas": "3"}).plan().least == 3, "as on serve run's command line"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modle": "m"}, "argument modle of the application: Extra inputs are not permitted; there are model, "),
        ({"gpus": -1}, "argument gpus of the application: Input should be greater than or equal to 0"),
        ({"limits": {"speed": 3}}, "no limit is called 'speed'"),
        ({"replicas": "many"}, "--replicas many"),
        ({"api_key_file": "no/such/file"}, "the API keys cannot be read"),
    ],
)
def test_what_a_config_cannot_ask_for(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        AppArguments.read(given).plan()


def test_the_documented_config_is_one() -> None:
    text = (ROOT / "contrib/ray-serve.yaml").read_text()
    assert "import_path: lluda.serving.ray_app:app" in text
    names = re.findall(r"^      (\w+):", text, re.MULTILINE)
    assert set(names) <= set(AppArguments.model_fields) and "replicas" in names


def test_a_replica_hears_once_that_it_gets_no_more_requests() -> None:
    heard: list[str] = []
    membership.watch("a", lambda: heard.append("a"))
    membership.tell(["b"])
    assert heard == [], "it was not there yet"
    membership.tell(["a", "b"])
    membership.tell(["b"])
    membership.tell(["a"])
    membership.tell([])
    assert heard == ["a"]


def test_counters_of_all_are_one_text() -> None:
    several = {name: Metrics() for name in ("a", "b")}
    several["a"].requests.labels("chat", "stop").inc(2)
    several["b"].requests.labels("chat", "stop").inc(3)
    text = merged({name: list(one.registry.collect()) for name, one in several.items()}).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    found = {
        sample.labels["replica"]: sample.value
        for sample in families["lluda_requests"].samples
        if sample.name == "lluda_requests_total"
    }
    assert found == {"a": 2, "b": 3}
    assert text.count("# TYPE lluda_requests_total ") == 1
    buckets = [one for one in families["lluda_queue_seconds"].samples if one.name.endswith("_bucket")]
    assert {one.labels["replica"] for one in buckets} == {"a", "b"}
