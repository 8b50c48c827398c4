"""Pictures of a perplexity run: predictions by chunk and their divergence, or a voice's agreement by codebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lluda.evaluation.perplexity import Comparison
from lluda.evaluation.plot_file import require_plot, write_png
from lluda.evaluation.speech_agreement import SpeechAgreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FLOOR = 1e-12


def plot_predictions(comparison: Comparison, path: Path, title: str) -> None:
    """Write a PNG: the perplexity after each chunk and, with a base, what share of the predictions diverges by more
    than so much. Errors as `lluda.evaluation.parity_plot.plot_parity`."""
    figure, panels = _figure(path, 1 if comparison.divergences is None else 2, title)
    for prediction in filter(None, (comparison.model, comparison.base)):
        panels[0].plot(range(1, len(prediction.running) + 1), prediction.running, label=prediction.name, linewidth=1.4)
    panels[0].set_xlabel(f"chunks of {comparison.context}")
    panels[0].set_ylabel("perplexity so far")
    panels[0].legend(frameon=False)
    if comparison.divergences is not None:
        ordered = comparison.divergences.clamp(min=_FLOOR).sort().values
        share = 1 - torch.arange(len(ordered)) / len(ordered)
        panels[1].loglog(ordered.tolist(), share.tolist(), linewidth=1.4)
        panels[1].set_xlabel("KL divergence from the base, nats")
        panels[1].set_ylabel("share of predictions above it")
    write_png(figure, path)


def plot_voices(agreement: SpeechAgreement, path: Path, title: str) -> None:
    """Write a PNG: the share of equal codes and the divergence of each codebook. Errors as `plot_predictions`."""
    figure, panels = _figure(path, 2, title)
    books = [one.codebook for one in agreement.codebooks]
    panels[0].bar(books, [one.same_code for one in agreement.codebooks])
    panels[0].set_ylim(0, 1)
    panels[0].set_ylabel("same code as the base")
    panels[1].bar(books, [max(one.mean_kl, _FLOOR) for one in agreement.codebooks])
    panels[1].set_yscale("log")
    panels[1].set_ylabel("mean KL divergence, nats")
    for panel in panels:
        panel.set_xlabel("codebook")
    write_png(figure, path)


def _figure(path: Path, panels: int, title: str) -> tuple[Figure, list[Axes]]:
    require_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * panels, 4), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=11)
    made = [figure.add_subplot(1, panels, number) for number in range(1, panels + 1)]
    for panel in made:
        panel.grid(visible=True, alpha=0.3)
    return figure, made
