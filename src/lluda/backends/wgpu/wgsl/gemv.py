"""Products of a matrix with one to four rows, with a norm in front and what comes behind fused in.

A group of threads takes some rows of the matrix; each thread has every n-th fragment of them. The sums of a row are in
the same order whatever is computed beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lluda.backends.wgpu.wgsl.forms import FORMS, HALF_AT, Lines
from lluda.backends.wgpu.wgsl.shader import GRID_X, ROUNDED, Shader, Target, binding

MAX_BATCH = 4
_WITHOUT_BARRIER = 8
"""Threads of a subgroup from which on groups are subgroups, or parts of them."""
_LEAST_GROUPS = 2048
_ROWS = {"bf16": 4, "f32": 4, "packed": 4, "q8_0": 8}
"""Rows of a matrix that a group of threads takes at most."""
_AHEAD = 8
"""Loads of weights that a thread asks for before the norm's sum is waited for, at most."""
Mode = Literal["store", "add", "gated", "experts", "mix"]


@dataclass(frozen=True, slots=True)
class Product:
    """``y[first : first + rows] = matrix [rows, columns] @ x`` for ``batch`` rows x, of which y has ``width`` each.

    ``eps``: x is ``rounded(x / rms * norm)``; None: x as it is. ``mode``: ``store`` into y, ``add`` to it, or
    ``gated``: the matrix is gate's rows and then up's, ``2 * rows``, and y is ``rounded(silu(gate) * up)``.

    ``experts``: ``gated`` with one row at a time and each of the ``top_k`` experts that ``choice`` names for it, into
    ``y [row, top_k, width]``. ``mix``: their outputs, of x ``[row, top_k, columns]``, times their weights, added to y.
    ``scaled`` (add): times the sigmoid of ``choice``'s gate of the row. ``choice [row]`` is what `mixture.route` wrote.
    """

    form: str
    rows: int
    columns: int
    width: int
    first: int = 0
    batch: int = 1
    eps: float | None = None
    mode: Mode = "store"
    top_k: int = 0
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """Threads of a group, rows of the matrix that it takes, and threads of a workgroup."""

    threads: int
    rows: int
    workgroup: int


def tile_of(product: Product, target: Target) -> Tile:
    """Threads depend on the matrix alone, so that sums do not depend on how many rows come together."""
    fragments = product.columns // FORMS[product.form].columns
    if target.shuffles(_WITHOUT_BARRIER):
        return _tile_of_subgroup(product, fragments, target)
    threads = 128 if fragments >= 384 else 64 if fragments >= 192 and product.form == "bf16" else 32
    while threads > 8 and fragments < 2 * threads:
        threads //= 2
    rows = 2 if product.form == "bf16" else 1
    if product.mode in ("store", "add") and product.rows // rows > 16384:
        rows *= 2
    return Tile(threads, rows, max(threads, 64 if product.rows < 4096 else 128))


def _tile_of_subgroup(product: Product, fragments: int, target: Target) -> Tile:
    """Threads that sum without a barrier. As many rows as leave enough groups to fill a GPU: the rows of x, and what is
    made of them, serve them all."""
    threads = min(target.subgroup, 32)
    while threads > 8 and fragments <= threads // 2:
        threads //= 2
    members = 2 if product.mode in ("gated", "experts") else 1
    most = _ROWS[product.form] // (members * product.batch)
    rows = 1
    while rows < most and product.rows // (2 * rows) >= _LEAST_GROUPS:
        rows *= 2
    return Tile(threads, rows, 128)


def gemv(product: Product, tile: Tile, target: Target) -> tuple[Shader, tuple[int, int]]:
    """Bindings w, x, y, then where there is one norm, side, choice; and the workgroups along x and y for one batch
    (``experts``: y is one expert of a row, ``mix``: one row; batches and rows follow along z)."""
    writer = _Writer(product, tile, target)
    per = tile.workgroup // tile.threads * tile.rows
    groups = -(-product.rows // per)
    return Shader(writer.text(), writer.kinds), (min(groups, GRID_X), -(-groups // GRID_X))


class _Writer:
    def __init__(self, product: Product, tile: Tile, target: Target) -> None:
        form = FORMS[product.form]
        assert product.columns % form.columns == 0, f"{product.columns} columns in {product.form}"
        self.product, self.tile, self.target, self.form = product, tile, target, form
        self.expert = product.mode in ("experts", "mix")
        self.paired = product.mode in ("gated", "experts")
        self.fragments = product.columns // form.columns
        self.matrix_rows = product.rows * (2 if self.paired else 1)  # of one expert
        self.rows = range(tile.rows * (2 if self.paired else 1))
        self.batch = range(1 if self.expert else product.batch)
        self.kinds, self.declarations = "", Lines()
        self._bind("r", "w", "vec4<u32>")
        self._bind("r", "x", "vec4<f32>")
        self._bind("w", "y", "f32")
        if product.eps is not None:
            self._bind("r", "norm", "vec4<f32>")
        if form.has_side:
            self._bind("r", "side", "u32")
        if self.expert or product.scaled:
            self._bind("r", "choice", "u32")

    def _bind(self, kind: str, name: str, element: str) -> None:
        self.declarations.append(binding(len(self.kinds), kind, name, element))
        self.kinds += kind

    def text(self) -> str:
        product, tile = self.product, self.tile
        sums = len(self.rows) * len(self.batch) * self.target.sum_floats(tile.threads, tile.workgroup)
        per = tile.workgroup // tile.threads * tile.rows
        return "\n".join([
            ROUNDED,
            *self.declarations,
            *([HALF_AT] if product.form == "q8_0" else []),
            f"var<workgroup> part: array<f32, {max(1, sums)}>;",
            f"@compute @workgroup_size({tile.workgroup}) fn main({self.target.builtins}) {{",
            self.target.thread,
            f"let group = t / {tile.threads}u; let l = t % {tile.threads}u;",
            f"let n0 = (wid.x + wid.y * {GRID_X}u) * {per}u + group * {tile.rows}u;",
            *(f"var total_{r}_{b} = 0.0;" for r in self.rows for b in self.batch),
            *self._places(),
            *(self._ahead() if product.eps is not None else []),
            *(self._norm() if product.eps is not None else []),
            *(self._mixed() if product.mode == "mix" else self._products()),
            self.target.sum(
                [f"total_{r}_{b}" for r in self.rows for b in self.batch], tile.threads, tile.workgroup
            ),
            "if (l == 0u) {",
            *self._results(),
            "} }",
        ])  # fmt: skip

    def _places(self) -> Lines:
        """Where x, y and the choice of these rows begin, and the expert's matrix."""
        product = self.product
        vectors, choice = product.columns // 4, 2 * product.top_k + 1
        if product.mode == "experts":
            k = product.top_k
            return [
                f"let x0 = wid.z / {k}u * {vectors}u; let y0 = wid.z * {product.width}u;",
                f"let base = choice[wid.z / {k}u * {choice}u + wid.z % {k}u] * {self.matrix_rows}u;",
                *self._row_numbers("base"),
            ]
        if product.mode == "mix":
            return [f"let y0 = wid.z * {product.width}u;"]
        batch = product.batch
        return [
            f"let x0 = wid.z * {batch * vectors}u; let y0 = wid.z * {batch * product.width}u;",
            *self._row_numbers("0u"),
        ]

    def _row_numbers(self, base: str) -> Lines:
        last, rows, R = self.product.rows - 1, self.product.rows, self.tile.rows
        return [
            f"let row_{r} = {base} + min(n0 + {r}u, {last}u);" if r < R else f"let row_{r} = row_{r - R} + {rows}u;"
            for r in self.rows
        ]

    def _mixed(self) -> Lines:
        """The outputs of the chosen experts, one after the other, so that their sum has a fixed order."""
        k, vectors = self.product.top_k, self.product.columns // 4
        choice = f"wid.z * {2 * k + 1}u"
        return [
            f"for (var j = 0u; j < {k}u; j++) {{",
            f"let x0 = (wid.z * {k}u + j) * {vectors}u; let base = choice[{choice} + j] * {self.matrix_rows}u;",
            f"let weight = bitcast<f32>(choice[{choice} + {k}u + j]);",
            *self._row_numbers("base"),
            *self._products("weight"),
            "}",
        ]

    def _fragment(self, i: int) -> str:
        """The thread's ``i``-th fragment; its last may be beyond the row, and is not used then."""
        at = f"(l + {i * self.tile.threads}u)"
        return at if self._whole else f"min{at[:-1]}, {self.fragments - 1}u)"

    @property
    def _whole(self) -> bool:
        return self.fragments % self.tile.threads == 0

    def _live(self, i: int) -> str:
        return "" if self._whole else f"if (l + {i * self.tile.threads}u < {self.fragments}u) "

    @property
    def _turns(self) -> range:
        return range(-(-self.fragments // self.tile.threads))

    def _x(self, b: int, at: str) -> str:
        """A vec4 of row b of x, normalised where that is fused."""
        place = f"x0 + {b * self.product.columns // 4}u + {at}" if b else f"x0 + {at}"
        if self.product.eps is None:
            return f"x[{place}]"
        return f"rounded(x[{place}] * scale_{b} * norm[{at}])"

    @property
    def _turns_ahead(self) -> int:
        """Turns whose weights are asked for before the norm is known."""
        return min(len(self._turns), max(1, _AHEAD // (len(self.rows) * self.form.loads)))

    def _load(self, r: int, load: int, i: int) -> str:
        """A thread's weights of its ``i``-th fragment."""
        place = self.form.load_at(self._fragment(i), load)
        return f"w[row_{r} * {self.form.row_vectors(self.product.columns)}u + {place}]"

    def _ahead(self) -> Lines:
        return [
            f"let w{i}_{r}_{load} = {self._load(r, load, i)};"
            for i in range(self._turns_ahead)
            for r in self.rows
            for load in range(self.form.loads)
        ]

    def _norm(self) -> Lines:
        """Every group computes it again: x comes from the cache."""
        lines = [f"var square_{b} = 0.0;" for b in self.batch]
        vectors = range(self.form.columns // 4)
        for b in self.batch:
            offset = f"x0 + {b * self.product.columns // 4}u"
            for i in self._turns:
                fragment = self._fragment(i)
                squares = "".join(
                    f"let v{k} = x[{offset} + {self.form.x_at(fragment, k)}]; square_{b} += dot(v{k}, v{k});"
                    for k in vectors
                )
                lines.append(f"{self._live(i)}{{ {squares} }}")
        names = [f"square_{b}" for b in self.batch]
        lines.append(self.target.sum(names, self.tile.threads, self.tile.workgroup))
        return lines + [
            f"let scale_{b} = inverseSqrt(square_{b} / {float(self.product.columns)} + {self.product.eps});"
            for b in self.batch
        ]

    def _products(self, weight: str | None = None) -> Lines:
        """Each thread's part of the rows' products, times ``weight``, added to ``total``."""
        form, columns = self.form, self.product.columns
        lines = ["{", *(f"var a_{r}_{b} = vec4<f32>(0.0);" for r in self.rows for b in self.batch)]
        for i in self._turns:
            fragment = self._fragment(i)
            lines.append(f"{self._live(i)}{{")
            is_here = self.product.eps is not None and i < self._turns_ahead
            lines += [
                f"let w_{r}_{load} = {f'w{i}_{r}_{load}' if is_here else self._load(r, load, i)};"
                for r in self.rows
                for load in range(form.loads)
            ]
            for b in self.batch:
                lines += [f"let x{k}_{b} = {self._x(b, form.x_at(fragment, k))};" for k in range(form.columns // 4)]
                lines += form.prepare(b)
            for r in self.rows:
                lines += form.accumulate(r, len(self.batch), fragment, columns)
            lines.append("}")
        values = [self._x(b, "column / 4u") for b in self.batch]
        total_rows = f"arrayLength(&w) / {form.row_vectors(columns)}u"
        for r in self.rows:
            lines += [f"var t_{r}_{b} = dot(a_{r}_{b}, vec4(1.0));" for b in self.batch]
            lines += form.finish(r, total_rows, self.tile.threads, values)
            times = f"{weight} * " if weight else ""
            lines += [f"total_{r}_{b} += {times}t_{r}_{b};" for b in self.batch]
        return [*lines, "}"]

    def _results(self) -> Lines:
        product, lines = self.product, Lines()
        for r in range(self.tile.rows):
            lines.append(f"if (n0 + {r}u < {product.rows}u) {{")
            for b in self.batch:
                at = f"y[y0 + {b * product.width + product.first}u + n0 + {r}u]"
                value = f"total_{r}_{b}"
                if self.paired:
                    up = f"total_{r + self.tile.rows}_{b}"
                    lines.append(f"{at} = rounded(vec4({value} / (1.0 + exp(-{value})) * {up})).x;")
                elif product.scaled:
                    row, step = f"wid.z * {product.batch}u + {b}u", 2 * product.top_k + 1
                    gate = f"bitcast<f32>(choice[({row}) * {step}u + {step - 1}u])"
                    lines.append(f"{at} += {value} / (1.0 + exp(-{gate}));")
                else:
                    lines.append(f"{at} {'=' if product.mode == 'store' else '+='} {value};")
            lines.append("}")
        return lines
