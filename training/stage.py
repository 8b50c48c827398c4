"""One stage of training under a clock: steps until the time is used up, learning rates, curve, checkpoints, resume."""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LOG_EVERY = 50
"""Steps over which the curve's values are averaged; the host waits for the GPU once in so many."""

SAVE_SECONDS = 120.0
WARM_UP = 200
ROUNDED_SHARE = 0.1
"""The last part of a stage, in which `rounded` weights are trained."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a stage keeps its files, and when it ends: after ``seconds`` of its own time over all its runs, at the time
    ``until`` (of `time.time`) where one is given, or after ``steps``. This run ends after ``run_seconds`` in any case,
    and can be resumed; so it is where ``succeeds`` names the process of the run before, which is ended first."""

    out: Path
    seconds: float
    steps: int | None = None
    run_seconds: float = math.inf
    device: str = "cuda"
    compiled: bool = True
    step_by_step: bool = False
    until: float | None = None
    succeeds: int | None = None

    @classmethod
    def parser(cls, description: str | None) -> argparse.ArgumentParser:
        """The options that all stages have."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, weights and curves")
        parser.add_argument("--seconds", type=float, default=60.0, help="time of the whole stage")
        parser.add_argument("--until", type=float, help="end of the whole stage instead, in seconds since 1970")
        parser.add_argument("--succeeds", type=int, help="process that runs the stage until now; it is ended")
        parser.add_argument("--run-seconds", type=float, default=math.inf, help="time of this run of it")
        parser.add_argument("--steps", type=int, help="end after so many steps instead")
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--eager", action="store_true", help="without torch.compile")
        parser.add_argument("--step-by-step", action="store_true", help="without CUDA graphs")
        return parser

    @classmethod
    def of(cls, options: argparse.Namespace) -> Limits:
        """From parsed options."""
        return cls(
            out=options.out,
            seconds=options.seconds,
            steps=options.steps,
            run_seconds=options.run_seconds,
            device=options.device,
            compiled=not options.eager,
            step_by_step=options.step_by_step,
            until=options.until,
            succeeds=options.succeeds,
        )

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled for the shapes it meets, each by itself; as it is, if nothing is to be compiled."""
        return torch.compile(function, dynamic=False) if self.compiled else function

    @property
    def captured(self) -> bool:
        """Whether steps are captured as CUDA graphs."""
        return self.device.startswith("cuda") and not self.step_by_step


class Stage:
    """Iterate over it for the steps: each value is how far the stage is, from 0 to below 1. The learning rate of every
    optimiser is set before a step: a linear warm-up, then half a cosine down to a hundredth of its first value. SIGTERM
    ends the run after its step."""

    def __init__(
        self, name: str, limits: Limits, modules: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        self.name, self.limits, self.modules, self.optimizers = name, limits, modules, optimizers
        self.step, self.elapsed, self._seconds, self._stopped = 0, 0.0, limits.seconds, False
        self.curve: list[dict[str, float]] = []
        self._peaks = [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
        self._sums: dict[str, tuple[Tensor, int]] = {}
        limits.out.mkdir(parents=True, exist_ok=True)
        if limits.succeeds is not None:
            _end(limits.succeeds)
        self._resume()

    @property
    def progress(self) -> float:
        """Share of the stage that is done."""
        return self.step / self.limits.steps if self.limits.steps else self.elapsed / self._seconds

    def __iter__(self) -> Iterator[float]:
        begun, before, saved = time.monotonic(), self.elapsed, time.monotonic()
        if self.limits.until is not None:
            self._seconds = before + max(1.0, self.limits.until - time.time())
        handler = signal.signal(signal.SIGTERM, self._stop)
        try:
            while self.progress < 1 and not self._stopped and time.monotonic() - begun < self.limits.run_seconds:
                self._set_rates()
                yield self.progress
                self.step += 1
                self.elapsed = before + time.monotonic() - begun
                if self.step % LOG_EVERY == 0 or self.step == self.limits.steps:
                    self._log()
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
            self.save()
        finally:
            signal.signal(signal.SIGTERM, handler)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def report(self, values: Mapping[str, Tensor]) -> None:
        """Values of this step for the curve; nothing waits for them."""
        for name, value in values.items():
            total, count = self._sums.get(name, (torch.zeros_like(value, dtype=torch.float32), 0))
            self._sums[name] = total + value.detach(), count + 1

    def save(self) -> None:
        """The checkpoint, the curve, and the weights alone (float32), each replaced at once."""
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "curve": self.curve,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        self._replace(f"{self.name}.ckpt", lambda path: torch.save(state, path))
        curve = {"stage": self.name, "steps": self.step, "seconds": round(self.elapsed, 1), "curve": self.curve}
        self._replace(f"{self.name}.json", lambda path: path.write_text(json.dumps(curve)))
        for name, module in self.modules.items():
            weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            self._replace(f"{self.name}.{name}.safetensors", lambda path, weights=weights: save_file(weights, path))

    def _replace(self, name: str, write: Any) -> None:
        unfinished = self.limits.out / f"{name}.new"
        write(unfinished)
        unfinished.replace(self.limits.out / name)

    def _resume(self) -> None:
        path = self.limits.out / f"{self.name}.ckpt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.limits.device, weights_only=True)
        self.step, self.elapsed, self.curve = state["step"], state["elapsed"], state["curve"]
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        print(f"{self.name}: goes on at step {self.step}, {self.elapsed:.0f} s", flush=True)

    def _set_rates(self) -> None:
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        warm = min(1.0, (self.step + 1) / WARM_UP)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * warm * cosine)
            else:
                group["lr"] = peak * warm * cosine

    def _log(self) -> None:
        means = {name: round(total.item() / count, 5) for name, (total, count) in self._sums.items()}
        self._sums = {}
        self.curve.append({"step": self.step, "seconds": round(self.elapsed, 1), **means})
        if self.step % (4 * LOG_EVERY) == 0 or self.step <= LOG_EVERY:
            speed = 1000 * self.elapsed / self.step
            print(f"{self.name} {self.step} {self.elapsed:.0f}s {speed:.0f}ms/step {means}", flush=True)


def _end(process: int) -> None:
    """Ask a process to end, and wait until it has."""
    try:
        found = psutil.Process(process)
        found.terminate()
        while found.is_running() and found.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return


def load_weights(module: nn.Module, path: Path) -> nn.Module:
    """The weights that a stage has saved."""
    module.load_state_dict(load_file(path), strict=True)
    return module


@contextmanager
def rounded(modules: Sequence[nn.Module], active: bool) -> Iterator[None]:
    """Run forward and backward with weights rounded to BF16, as they will be stored; the optimiser changes the exact
    ones (straight-through)."""
    if not active:
        yield
        return
    parameters = [parameter for module in modules for parameter in module.parameters()]
    exact = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_copy_(parameters, [value.bfloat16().float() for value in exact])
    yield
    with torch.no_grad():
        torch._foreach_copy_(parameters, exact)


def autocast(device: str) -> torch.autocast:
    """BF16 products on a GPU; float32 on a CPU, where the tests run."""
    return torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda"))
