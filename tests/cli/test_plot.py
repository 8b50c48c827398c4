from __future__ import annotations

import sys

import pytest

from lluda.cli.plot import plot_validation, require_plot
from lluda.errors import InvalidRequest, MissingDependency
from tests.evaluation.conftest import TINY, checkpoint, run_validation, text_of

__all__ = ["checkpoint"]  # fixture

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def validation(checkpoint):
    pytest.importorskip("matplotlib")
    return run_validation(checkpoint(TINY["qwen3"]), "bf16", greedy=0)


def drawn_lines(validation, path, monkeypatch):
    """What plot_validation puts on its axes: label -> (stages, values)."""
    from matplotlib.axes import Axes

    lines = {}
    plot = Axes.plot

    def record(axes, x, y, *style, **options):
        lines[options["label"]] = (x, y)
        return plot(axes, x, y, *style, **options)

    monkeypatch.setattr(Axes, "plot", record)
    plot_validation(validation, path)
    return lines


def test_a_png_with_both_implementations_against_float64(validation, tmp_path, monkeypatch):
    lines = drawn_lines(validation, tmp_path / "errors.png", monkeypatch)
    assert (tmp_path / "errors.png").read_bytes().startswith(PNG)
    assert set(lines) == {"lluda against transformers", "lluda against float64", "transformers against float64"}
    stages, values = lines["lluda against float64"]
    assert stages == tuple(range(1, len(text_of(validation).stages)))  # the embeddings have no error
    logits = text_of(validation).stages[-1]
    assert values[-1] == pytest.approx(logits.error_to_float64.lluda / logits.mean_abs_value)


def test_without_float64_only_the_difference(checkpoint, tmp_path, monkeypatch):
    validation = run_validation(checkpoint(TINY["moe"]), "bf16", greedy=0, float64=False)
    assert set(drawn_lines(validation, tmp_path / "e.png", monkeypatch)) == {"lluda against transformers"}


def test_a_run_without_any_error_is_drawn_as_such(validation, tmp_path, monkeypatch):
    from dataclasses import replace

    same = tuple(
        replace(stage, mean_abs_error=0.0, error_to_float64=type(stage.error_to_float64)(0.0, 0.0))
        for stage in text_of(validation).stages
    )
    component = replace(text_of(validation), stages=same)
    assert drawn_lines(replace(validation, components=(component,)), tmp_path / "none.png", monkeypatch) == {}
    assert (tmp_path / "none.png").stat().st_size > 1000


def test_where_it_cannot_be_written_is_found_before_the_run(tmp_path, monkeypatch):
    with pytest.raises(InvalidRequest, match=r"must end in \.png"):
        require_plot(tmp_path / "errors.svg")
    with pytest.raises(InvalidRequest, match="folder does not exist"):
        require_plot(tmp_path / "absent" / "errors.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"lluda\[validate\]"):
        require_plot(tmp_path / "errors.png")


def test_a_folder_in_the_place_of_the_file_is_refused(validation, tmp_path):
    (tmp_path / "errors.png").mkdir()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        plot_validation(validation, tmp_path / "errors.png")
