"""A kernel's text, and what all kernels share: thread numbers, rounding, sums over neighbouring threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GRID_X = 32768
"""Workgroups along x; more go to y (the limit of a dimension is 65,535)."""


@dataclass(frozen=True, slots=True)
class Shader:
    """WGSL with the entry ``main`` and, of each binding of group 0 in turn, whether it is read (r) or written (w)."""

    code: str
    kinds: str


@dataclass(frozen=True, slots=True)
class Target:
    """What kernels are compiled for: the fewest threads that a subgroup may have; 0 is without subgroups. The driver
    chooses the size when it compiles, and may take any from there on."""

    subgroup: int

    @property
    def builtins(self) -> str:
        """Parameters of ``main``."""
        if self.subgroup:
            return (
                "@builtin(workgroup_id) wid: vec3<u32>, @builtin(subgroup_id) sid: u32, "
                "@builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) ssize: u32"
            )
        return "@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32"

    @property
    def thread(self) -> str:
        """The statement that makes ``t``, the thread's number, such that neighbours share a subgroup: only these two
        builtins say who does."""
        return "let t = sid * ssize + lane;" if self.subgroup else ""

    def shuffles(self, threads: int) -> bool:
        """Whether groups of so many neighbours always lie inside one subgroup."""
        return 0 < threads <= self.subgroup

    def sum_floats(self, threads: int, workgroup: int) -> int:
        """Floats of workgroup memory that `sum` takes for each name."""
        if self.shuffles(threads):
            return 0
        return max(1, workgroup // self.subgroup) if self.subgroup else workgroup

    def sum(self, names: Sequence[str], threads: int, workgroup: int, memory: str = "part") -> str:
        """Sum each of the variables ``names`` over groups of so many neighbouring threads, which all get the sums;
        ``memory``: the array of workgroup memory for it."""
        if self.shuffles(threads):
            return _shuffled(names, threads)
        if self.subgroup:
            return _shuffled_then_shared(names, threads, self.sum_floats(threads, workgroup), memory)
        return _tree(names, threads, workgroup, memory)


ROUNDED = """fn rounded(v: vec4<f32>) -> vec4<f32> {
  let u = bitcast<vec4<u32>>(v);
  return bitcast<vec4<f32>>((u + vec4(0x7fffu) + ((u >> vec4(16u)) & vec4(1u))) & vec4(0xffff0000u));
}"""
"""To the nearest BF16, ties to even."""


def binding(index: int, kind: str, name: str, element: str) -> str:
    """The declaration of a binding of arrays."""
    access = "read" if kind == "r" else "read_write"
    return f"@group(0) @binding({index}) var<storage, {access}> {name}: array<{element}>;"


def _shuffled(names: Sequence[str], threads: int) -> str:
    steps = [1 << bit for bit in range(threads.bit_length() - 1)]
    return "\n".join(f"{name} += subgroupShuffleXor({name}, {step}u);" for step in steps for name in names)


def _shuffled_then_shared(names: Sequence[str], threads: int, chunks: int, memory: str) -> str:
    """A subgroup lies within one group of threads, or groups within it."""
    inner = "".join(f"{name} += subgroupShuffleXor({name}, step);" for name in names)
    lines = [
        f"{{ let inside = min({threads}u, ssize); var step = 1u;",
        f"while (step < inside) {{ {inner} step <<= 1u; }}",
        "if (t % inside == 0u) {",
        *(f"{memory}[{index * chunks}u + t / inside] = {name};" for index, name in enumerate(names)),
        f"}} workgroupBarrier(); let per = {threads}u / inside; let first = t / {threads}u * per;",
    ]
    for index, name in enumerate(names):
        lines.append(
            f"{name} = 0.0; for (var c = 0u; c < per; c++) {{ {name} += {memory}[{index * chunks}u + first + c]; }}"
        )
    return "\n".join([*lines, "workgroupBarrier(); }"])


def _tree(names: Sequence[str], threads: int, workgroup: int, memory: str) -> str:
    lines = [f"{memory}[{index * workgroup}u + t] = {name};" for index, name in enumerate(names)] + [
        "workgroupBarrier();"
    ]
    step = threads // 2
    while step:
        adds = "".join(
            f"{memory}[{index * workgroup}u + t] += {memory}[{index * workgroup}u + t + {step}u];"
            for index in range(len(names))
        )
        lines.append(f"if (t % {threads}u < {step}u) {{ {adds} }} workgroupBarrier();")
        step //= 2
    lines += [
        f"{name} = {memory}[{index * workgroup}u + t / {threads}u * {threads}u];" for index, name in enumerate(names)
    ]
    return "\n".join([*lines, "workgroupBarrier();"])
