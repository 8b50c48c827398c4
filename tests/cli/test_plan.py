from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.cli.conftest import CONFIG
from tests.cli.omni import write_omni


@pytest.fixture
def little_memory(monkeypatch):
    """A machine with a megabyte left."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1_000_000))


def test_the_table_adds_up(lluda, model):
    printed = lluda("plan", model)
    assert (printed.code, printed.err) == (0, "")
    title, header, *rows, total, available = printed.out.splitlines()
    assert title == f"tiny: qwen3, bf16 on cpu, up to {CONFIG['max_position_embeddings']} positions"
    assert header.split() == ["component", "parameters", "bytes"]
    parts = [int(row.split()[-1].replace(",", "")) for row in rows]
    parameters, nbytes = (int(text.replace(",", "")) for text in total.split()[1:])
    assert sum(parts) == nbytes
    assert parameters == json.loads(lluda("inspect", model, "--json").out)["components"][-1]["parameters"]
    assert int(available.split()[1].replace(",", "")) > nbytes


def test_yarn_stretches_what_may_be_planned(lluda, model):
    """To the trained positions times the factor, as vLLM's limit."""
    scaling = json.dumps({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000})
    longer = lluda("plan", model, "--rope-scaling", scaling, "--max-context", 4000)
    assert longer.code == 0
    assert longer.out.splitlines()[0].endswith("up to 4000 positions (YaRN, 4 times 1000)")
    assert "KV cache, 4000 positions" in longer.out
    assert json.loads(lluda("plan", model, "--rope-scaling", scaling, "--json").out)["max_context"] == 4000
    refused = lluda("plan", model, "--max-context", 4000)
    assert refused.code == 2
    assert "exceeds the model's 1024 positions; take fewer, or stretch them by YaRN" in refused.err
    assert lluda("plan", model, "--rope-scaling", "yarn").code == 2


def test_json_has_the_same_numbers_and_the_context_decides_the_cache(lluda, model):
    def cache(context):
        return json.loads(lluda("plan", model, "--json", "--max-context", context).out)["kv_cache"]["nbytes"]

    document = json.loads(lluda("plan", model, "--json").out)
    assert document["model"] == str(model)
    assert document["fits"] is True
    assert document["weight_bytes"] == sum(row["nbytes"] for row in document["weights"])
    assert (
        document["total"]
        == sum(document[key]["nbytes"] for key in ("kv_cache", "activations")) + document["weight_bytes"]
    )
    bytes_per_position = 2 * 2 * CONFIG["num_hidden_layers"] * CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    assert cache(100) == 100 * bytes_per_position
    assert cache(1000) == 1000 * bytes_per_position


def test_the_dtypes_count(lluda, model):
    def plan(*options):
        return json.loads(lluda("plan", model, "--json", *options).out)

    narrow, wide = plan(), plan("--dtype", "f32")
    assert wide["weight_bytes"] == 2 * narrow["weight_bytes"]
    assert wide["kv_cache"]["nbytes"] == 2 * narrow["kv_cache"]["nbytes"]
    assert plan("--kv-dtype", "f32")["kv_cache"]["nbytes"] == wide["kv_cache"]["nbytes"]


def test_what_cannot_fit_is_shown_and_refused_with_both_numbers(lluda, model, little_memory):
    printed = lluda("plan", model, "--json", "--dtype", "f32")
    assert printed.code == 2
    document = json.loads(printed.out)
    assert document["fits"] is False
    assert len(printed.lines) == 1
    assert f"needs {document['total'] / 1e9:.2f} GB" in printed.err
    assert "0.00 GB are available, 0.00 GB too few; take a smaller --max-context" in printed.err


def test_generate_refuses_what_cannot_fit_before_it_loads(lluda, model, little_memory, monkeypatch):
    monkeypatch.setattr("lluda.engine.loading.model_files.load_tensors", lambda *_, **__: pytest.fail("loaded tensors"))
    printed = lluda("generate", "-m", model, "hi")
    assert (printed.code, printed.out) == (2, "")
    assert "but 0.00 GB are available" in printed.err


def test_a_config_alone_can_be_planned(lluda, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert lluda("plan", "-m", tmp_path).code == 0


def test_the_released_30b_at_full_size(lluda, released_configs):
    document = json.loads(lluda("plan", released_configs / "Qwen3-30B-A3B", "--json").out)
    assert document["parameters"] == 30_532_122_624
    assert document["weight_bytes"] == 2 * document["parameters"]


def test_the_experts_of_the_released_30b_on_a_device_of_their_own(lluda, released_configs):
    printed = lluda("plan", released_configs / "Qwen3-30B-A3B", "--json", "--place", "experts=cpu:0")
    experts = [row for row in json.loads(printed.out)["weights"] if row["device"] == "cpu:0"]
    layers, count, hidden, width = 48, 128, 2048, 768
    assert {row["component"]: row["parameters"] for row in experts} == {
        "text / routed experts": layers * count * 3 * hidden * width,
        "text / routers": layers * count * hidden,
        "text / norms": layers * hidden,
    }
    assert json.loads(printed.out)["parameters"] == 30_532_122_624


def test_ranks_hold_their_parts_and_a_cpu_holds_all_of_them(lluda):
    """The encoders, and norms and routers of each, are whole."""

    def plan(*options):
        return json.loads(lluda("plan", "tiny-omni", "--json", *options).out)

    def held(plan, *kept):
        return sum(
            row["nbytes"]
            for row in plan["weights"]
            if ("tower" in row["component"] or "visual" in row["component"]) in kept
        )

    whole, shared = plan(), plan("--tp", "2")
    assert shared["kv_cache"]["nbytes"] == whole["kv_cache"]["nbytes"] // 2
    assert held(shared, True) == held(whole, True)
    assert 0.5 < held(shared, False) / held(whole, False) < 0.51
    (other,) = shared["ranks"]
    assert (other["component"], other["device"]) == ("rank 1", "cpu")
    beside = shared["kv_cache"]["nbytes"] + shared["activations"]["nbytes"]
    assert other["nbytes"] == held(shared, False) + beside
    assert shared["total"] == shared["weight_bytes"] + beside + other["nbytes"]
    assert plan("--tp", "2", "--speech")["ranks"] == shared["ranks"], "only the first speaks"
    assert [row["component"] for row in plan("--tp", "4")["ranks"]] == ["rank 1", "rank 2", "rank 3"]


def test_ranks_that_do_not_fit_together_are_refused(lluda, monkeypatch):
    total = json.loads(lluda("plan", "tiny-omni", "--json", "--tp", "2").out)["total"]
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=total - 1))
    planned, generated = (
        lluda("plan", "tiny-omni", "--tp", "2"),
        lluda("generate", "-m", "tiny-omni", "--tp", "2", "hi"),
    )
    assert (planned.code, generated.code) == (2, 2)
    assert "other ranks 0.01 GB" in planned.err
    assert generated.err == planned.err.replace("lluda plan:", "lluda generate:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tp", "2"], "265 rows of model.embed_tokens.weight cannot be shared by 2 ranks"),
        (["--tp", "2", "--speed"], "--speed predicts one process; leave --tp out"),
        (["--place", "experts=cpu:0"], "place: this qwen3 model has no experts; leave experts= out"),
        (["--max-context", "5000"], "max_context 5000 exceeds the model's 1024 positions"),
        (["--max-context", "0"], "max_context must be a positive integer, not 0"),
        (["--prefill-chunk", "0"], "prefill_chunk must be a positive integer, not 0"),
        (["--dtype", "int8"], "dtype 'int8' is not one of auto, bf16, f32, f64"),
        (["--kv-cache", "big"], "kv_cache 'big' is not one of growing, preallocated"),
        (["--kv-dtype", "f8"], "kv_dtype 'f8' is not one of bf16, f32, f64"),
        (["--device", "gpu"], "device 'gpu' cannot be used: "),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used: "),
        (["--device", "meta"], "device 'meta' cannot be used: "),
        (["--device", "hpu"], "device 'hpu' cannot be used: "),
    ],
)
def test_an_option_out_of_its_range_is_one_line_and_2(lluda, model, options, message):
    printed = lluda("plan", model, *options)
    assert (printed.code, printed.out) == (2, "")
    assert len(printed.lines) == 1
    assert printed.err.startswith(f"lluda plan: {message}")


def test_packed_matrices_count_as_they_are_stored(lluda, model, tmp_path):
    assert lluda("pack", "-m", model, tmp_path / "packed").code == 0
    listed = json.loads(lluda("inspect", tmp_path / "packed", "--json").out)["tensors"]
    packed = sum(tensor["bytes"] for tensor in listed if tensor["dtype"] == "PACKED_BF16")
    plain = sum(tensor["bytes"] for tensor in listed if tensor["dtype"] != "PACKED_BF16")
    document = json.loads(lluda("plan", tmp_path / "packed", "--json").out)
    assert document["weight_bytes"] == packed + plain
    assert packed > 0
    assert json.loads(lluda("plan", model, "--json").out)["weight_bytes"] > packed + plain


@pytest.mark.parametrize(
    ("component", "parameters"),
    [
        ("thinker", 31_719_205_488),
        ("thinker.visual", 538_631_408),
        ("vision_encoder", 538_631_408),
        ("talker", 3_324_596_480),
        ("talker.code_predictor", 141_570_304),
        ("code2wav", 216_016_577),
    ],
)
def test_a_component_of_the_released_omni_model_by_itself(lluda, released_config, tmp_path, component, parameters):
    (tmp_path / "config.json").write_text(json.dumps(released_config("Qwen3-Omni-30B-A3B-Instruct")))
    printed = lluda("plan", tmp_path, "--only", component, "--json")
    document = json.loads(printed.out)
    assert (document["parameters"], document["weight_bytes"]) == (parameters, 2 * parameters)
    assert (document["kv_cache"]["nbytes"] > 0) == (component == "thinker")


def test_a_component_that_is_not_there_is_refused_with_those_that_are(lluda, model):
    printed = lluda("plan", model, "--only", "talker")
    assert (printed.code, printed.out) == (2, "")
    assert printed.err.startswith("lluda plan: component 'talker' is not one of text")


def test_a_prompt_with_media_is_planned(lluda, tmp_path):
    """Its encoders and its rows, beside what a prompt of text takes."""
    omni = write_omni(tmp_path / "omni")
    without = json.loads(lluda("plan", omni, "--json").out)
    document = json.loads(lluda("plan", omni, "--json", "--image", "640x480", "--audio", 30).out)
    names = [row["component"] for row in document["media"]]
    assert len(names) == 2 and names[0].startswith("encoding") and names[1] == "rows of media"
    assert document["total"] == without["total"] + sum(row["nbytes"] for row in document["media"])
    printed = lluda("plan", omni, "--audio", 30)
    assert printed.code == 0 and "encoding 30 s of sound" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "640"), "--image takes width and height in pixels, as 1024x768, not '640'"),
        (("--image", "0x7"), "a picture needs sides of at least 1 pixel, not 0x7"),
        (("--audio", "-3"), "seconds of sound must be above 0, not -3.0"),
        (("--audio", "3"), "a qwen3 model takes text only; plan it without pictures and sound"),
    ],
)
def test_media_that_cannot_be_planned(lluda, model, arguments, message):
    printed = lluda("plan", model, *arguments)
    assert (printed.code, printed.out) == (2, "")
    assert message in printed.err


def test_speed_is_predicted_for_a_machine_that_is_named(lluda, model):
    def decoding(*options):
        document = json.loads(lluda("plan", model, "--json", *options).out)
        return {name: rows[0]["value"] for name, rows in document["speed"].items()}

    slow, fast = decoding("--bandwidth", 1, "--flops", 1), decoding("--bandwidth", 2, "--flops", 1)
    assert list(slow) == ["BF16", "packed", "Q8_0"]
    assert all(slow[name] < fast[name] for name in slow)
    assert "speed" not in json.loads(lluda("plan", model, "--json").out)
    text = lluda("plan", model, "--bandwidth", 1, "--flops", 1).out
    assert "speed, predicted (for the machine named)" in text
    assert "tokens a second" in text


def test_speed_is_predicted_by_products_measured_here(lluda, model, monkeypatch):
    for name, value in {"OUT": 256, "IN": 128, "_TOTAL_BYTES": 1 << 18}.items():
        monkeypatch.setattr(f"lluda.bench.prediction.products.{name}", value)
    document = json.loads(lluda("plan", model, "--json", "--speed").out)
    assert [row["test"] for row in document["speed"]["BF16"]] == ["tg128", "pp128", "pp512"]
    assert all(row["value"] > 0 for rows in document["speed"].values() for row in rows)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--bandwidth", 5), "--bandwidth and --flops go together"),
        (("--flops", 5), "--bandwidth and --flops go together"),
        (("--bandwidth", 0, "--flops", 1), "must be above 0, not 0 and 1"),
        (("--bandwidth", "inf", "--flops", 1), "must be above 0, not inf and 1"),
        (("--bandwidth", "nan", "--flops", 1), "must be above 0, not nan and 1"),
        (("--speed", "--place", "experts=cpu"), "leave --place out"),
    ],
)
def test_half_a_machine_is_refused(lluda, model, options, complaint):
    printed = lluda("plan", model, *options)
    assert printed.code == 2
    assert complaint in printed.err
