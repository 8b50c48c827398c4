"""Products of many rows: tiles of rows and of the matrix, whose inputs pass through workgroup memory as float32.

A row's sums are in the order of the columns, whatever is computed beside it and however large its tile is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lluda.backends.wgpu.wgsl.activations import ACTIVATIONS, Activation
from lluda.backends.wgpu.wgsl.embedding import value_of
from lluda.backends.wgpu.wgsl.shader import ROUNDED, Shader, binding

WIDTH = 64
"""Rows of the matrix in a tile."""

SMALL, LARGE = 16, 64
"""Rows of x in a tile: for few rows, and for many."""

_DEPTH, _WORKGROUP = 32, 256


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of a sum: ``bias`` is added, then the activation, times ``scaled``'s vector, rounded to BF16, and
    stored or (``add``) added to what is there. Bias and scale are float ``[width - first]``, one binding each."""

    mode: Literal["store", "add"] = "store"
    bias: bool = False
    activation: Activation | None = None
    scaled: bool = False
    rounded: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """Row m of x as it lies."""

    def read(self, columns: int) -> str:
        """Of row m and column k, a multiple of 4, the vec4."""
        return f"x[(m * {columns}u + k) / 4u]"

    inside = "true"
    """Whether row m has column k; zeros where not."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Of a convolution along rows of ``channels`` (a multiple of 4): rows m, m + dilation, … one below the other."""

    channels: int
    dilation: int = 1
    inside = "true"

    def read(self, columns: int) -> str:  # noqa: ARG002
        """As of Rows."""
        C = self.channels
        return f"x[((m + k / {C}u * {self.dilation}u) * {C}u + k % {C}u) / 4u]"


@dataclass(frozen=True, slots=True)
class Squares:
    """Of a convolution of 3 by 3 with stride 2 and padding 1 over pictures ``[height, width, channels]`` (a multiple of
    4), one below the other: the values around each output."""

    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an output."""
        return (self.height + 1) // 2, (self.width + 1) // 2

    @property
    def _position(self) -> tuple[str, str]:
        (height, width), tap = self.shape, f"k / {self.channels}u"
        return f"(m / {width}u % {height}u * 2u + {tap} / 3u)", f"(m % {width}u * 2u + {tap} % 3u)"

    @property
    def inside(self) -> str:
        """As of Rows; positions begin with the padding."""
        y, x = self._position
        return f"{y} > 0u && {y} <= {self.height}u && {x} > 0u && {x} <= {self.width}u"

    def read(self, columns: int) -> str:  # noqa: ARG002
        """As of Rows."""
        (height, width), (y, x) = self.shape, self._position
        picture = f"m / {height * width}u"
        cell = f"(({picture} * {self.height}u + {y} - 1u) * {self.width}u + {x} - 1u)"
        return f"x[({cell} * {self.channels}u + k % {self.channels}u) / 4u]"


@dataclass(frozen=True, slots=True)
class Columns:
    """Of pictures ``[height, width, channels]``: m is picture and place along the width; the values above each other
    there, of one channel after the other."""

    height: int
    width: int
    channels: int
    inside = "true"

    def read(self, columns: int) -> str:  # noqa: ARG002
        """As of Rows."""
        return f"vec4({', '.join(f'{self._value(j)}' for j in range(4))})"

    def _value(self, j: int) -> str:
        y, channel = f"(k + {j}u) % {self.height}u", f"(k + {j}u) / {self.height}u"
        cell = f"(m / {self.width}u * {self.height}u + {y}) * {self.width}u + m % {self.width}u"
        at = f"(({cell}) * {self.channels}u + {channel})"
        return f"x[{at} / 4u][{at} % 4u]"


Source = Rows | Windows | Squares | Columns
"""Where the rows of x lie."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Of ``count`` experts' matrices, one behind the other: each tile's rows are pairs of a row and one of the
    ``top_k`` experts that it chose, which `grouping.group` put together. ``of_rows``: x is the row, else the pair."""

    count: int
    top_k: int
    of_rows: bool


@dataclass(frozen=True, slots=True)
class Tiled:
    """``y[above + m, first + n] = x[m] @ matrix[member * rows + n]`` of ``rows`` rows n of each of the matrix's
    ``members``; ``columns`` are a multiple of 8; y has ``width`` columns. ``form`` of the matrix: `forms.FORMS` without
    float32. ``small``: tiles of few rows. ``source``: what the rows of x are. ``given``: columns that x has, a multiple
    of 4, where the matrix is filled up with zeros."""

    rows: int
    columns: int
    width: int
    first: int = 0
    above: int = 0
    member: int = 0
    members: int = 1
    form: str = "bf16"
    small: bool = False
    source: Source = field(default_factory=Rows)
    experts: Experts | None = None
    ending: Ending = field(default_factory=Ending)
    given: int | None = None

    @property
    def x_columns(self) -> int:
        """Columns that x has."""
        return self.columns if self.given is None else self.given

    @property
    def tile(self) -> int:
        """Rows of x in a tile."""
        return SMALL if self.small else LARGE

    def grid(self, tiles: int) -> tuple[int, int, int]:
        """Workgroups for so many tiles of rows."""
        return -(-self.rows // WIDTH), tiles, 1


def product(tiled: Tiled) -> Shader:
    """For workgroups (rows / WIDTH, tiles). Bindings: matrix, x (float, and as many rows as fill the tiles), y, then
    where there is one the matrix's side, the bias, the scale, and what `grouping.group` wrote."""
    assert tiled.columns % 8 == 0 and tiled.x_columns % 4 == 0, f"{tiled.x_columns} columns of {tiled.columns}"
    plain = tiled.form == "bf16"
    bindings = [("r", "w", "vec4<u32>" if plain else "u32"), ("r", "x", "vec4<f32>"), ("w", "y", "f32")]
    bindings += [] if plain else [("r", "side", "u32")]
    bindings += [("r", "bias", "f32")] if tiled.ending.bias else []
    bindings += [("r", "scale", "f32")] if tiled.ending.scaled else []
    bindings += [("r", "plan", "u32")] if tiled.experts else []
    text = [ROUNDED, *(binding(i, *each) for i, each in enumerate(bindings))]
    text += [] if plain else [value_of(tiled.form, _matrix_rows(tiled), tiled.columns)]
    text += [_x(tiled), ACTIVATIONS[tiled.ending.activation] if tiled.ending.activation else "", _put(tiled)]
    return Shader("\n".join([*text, _main(tiled)]), "".join(kind for kind, _, _ in bindings))


def _matrix_rows(tiled: Tiled) -> int:
    """Of all members and experts."""
    return (tiled.experts.count if tiled.experts else 1) * tiled.members * tiled.rows


def _x(tiled: Tiled) -> str:
    source = tiled.source
    read = f"return {source.read(tiled.x_columns)};"
    guarded = read if source.inside == "true" else f"if ({source.inside}) {{ {read} }} return vec4<f32>(0.0);"
    return f"fn x_at(m: u32, k: u32) -> vec4<f32> {{ {guarded} }}"


def _put(tiled: Tiled) -> str:
    ending = tiled.ending
    lines = ["var v = sum;"]
    lines += [f"v += bias[{tiled.first}u + n];"] if ending.bias else []
    lines += [f"v = {ending.activation}(v);"] if ending.activation else []
    lines += [f"v *= scale[{tiled.first}u + n];"] if ending.scaled else []
    lines += ["v = rounded(vec4(v)).x;"] if ending.rounded else []
    assign = "=" if ending.mode == "store" else "+="
    place = f"y[(m + {tiled.above}u) * {tiled.width}u + {tiled.first}u + n]"
    return f"fn put(m: u32, n: u32, sum: f32) {{ if (n < {tiled.rows}u) {{ {' '.join(lines)} {place} {assign} v; }} }}"


def _main(tiled: Tiled) -> str:
    each = tiled.tile // 16
    vectors = _DEPTH * tiled.tile // 4
    sums = " ".join(f"var a{i} = vec4<f32>(0.0);" for i in range(each))
    x_values = ["p.x", "p.y", "p.z", "p.w"] if each == 4 else ["tx_[k * 4u + ty / 4u][ty % 4u]"]
    x_load = "let p = tx_[k * 16u + ty];" if each == 4 else ""
    adds = " ".join(f"a{i} = fma(vec4({value}), q, a{i});" for i, value in enumerate(x_values))
    puts = "\n".join(
        f"  {{ {_row(tiled, f'm0 + ty * {each}u + {i}u')} "
        + " ".join(f"put(m, n0 + tx * 4u + {j}u, a{i}.{axis});" for j, axis in enumerate("xyzw"))
        + " }"
        for i in range(each)
    )
    return f"""var<workgroup> tx_: array<vec4<f32>, {vectors}>;
var<workgroup> tw: array<vec4<f32>, {_DEPTH * WIDTH // 4}>;
@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let n0 = wid.x * {WIDTH}u; let tx = t % 16u; let ty = t / 16u;
  {_tile(tiled)}
  {sums}
  for (var k0 = 0u; k0 < {tiled.columns}u; k0 += {_DEPTH}u) {{
    for (var i = t; i < {vectors}u; i += {_WORKGROUP}u) {{
      let r = i % {tiled.tile}u; let c = i / {tiled.tile}u; var v = vec4<f32>(0.0);
      if (k0 + c * 4u < {tiled.x_columns}u) {{ {_source_row(tiled)} v = x_at(m, k0 + c * 4u); }}
      for (var j = 0u; j < 4u; j++) {{ tx_[((c * 4u + j) * {tiled.tile}u + r) / 4u][r % 4u] = v[j]; }}
    }}
{_matrix(tiled)}
    workgroupBarrier();
    for (var k = 0u; k < {_DEPTH}u; k++) {{
      let q = tw[k * {WIDTH // 4}u + tx]; {x_load}
      {adds}
    }}
    workgroupBarrier();
  }}
{puts}
}}"""


def _tile(tiled: Tiled) -> str:
    """Where the tile's rows begin, and its matrix."""
    if tiled.experts is None:
        return f"let m0 = wid.y * {tiled.tile}u; let base = {tiled.member * tiled.rows}u;"
    return f"""if (wid.y >= plan[0]) {{ return; }}
  let m0 = plan[3u + wid.y * 3u]; let end = plan[4u + wid.y * 3u]; let pairs = plan[1];
  let base = plan[2u + wid.y * 3u] * {tiled.members * tiled.rows}u + {tiled.member * tiled.rows}u;"""


def _source_row(tiled: Tiled) -> str:
    experts = tiled.experts
    if experts is None:
        return "let m = m0 + r;"
    pair = "plan[pairs + min(m0 + r, end - 1u)]"
    return f"let m = {pair}{f' / {experts.top_k}u' if experts.of_rows else ''};"


def _row(tiled: Tiled, place: str) -> str:
    """The row of y; tiles of pairs may be less than full."""
    if tiled.experts is None:
        return f"let m = {place};"
    return f"if ({place} >= end) {{ return; }} let m = plan[pairs + {place}];"


def _matrix(tiled: Tiled) -> str:
    """The matrix's part of a tile, eight columns for each thread. Neighbours take neighbouring rows, so that what
    they write lies in different banks of workgroup memory."""
    where = "base + n0 + r"
    inside = f"n0 + r < {tiled.rows}u && k0 + c * 8u < {tiled.columns}u"
    if tiled.form == "bf16":
        return f"""    let r = t % {WIDTH}u; let c = t / {WIDTH}u; var v = vec4<u32>(0u);
    if ({inside}) {{ v = w[(({where}) * {tiled.columns}u + k0) / 8u + c]; }}
    for (var j = 0u; j < 4u; j++) {{
      tw[((c * 8u + 2u * j) * {WIDTH}u + r) / 4u][r % 4u] = bitcast<f32>(v[j] << 16u);
      tw[((c * 8u + 2u * j + 1u) * {WIDTH}u + r) / 4u][r % 4u] = bitcast<f32>(v[j] & 0xffff0000u);
    }}"""
    if tiled.form == "q8_0":
        return f"""    let r = t % {WIDTH}u; let c = t / {WIDTH}u; var v0 = vec4<f32>(0.0); var v1 = vec4<f32>(0.0);
    if ({inside}) {{
      let at = ({where}) * {tiled.columns}u + k0 + c * 8u; let d = half_at(at / 32u);
      v0 = d * vec4<f32>(unpack4xI8(w[at / 4u])); v1 = d * vec4<f32>(unpack4xI8(w[at / 4u + 1u]));
    }}
    for (var j = 0u; j < 4u; j++) {{
      tw[((c * 8u + j) * {WIDTH}u + r) / 4u][r % 4u] = v0[j];
      tw[((c * 8u + 4u + j) * {WIDTH}u + r) / 4u][r % 4u] = v1[j];
    }}"""
    return f"""    let r = t % {WIDTH}u; let c = t / {WIDTH}u;
    for (var j = 0u; j < 8u; j++) {{
      var v = 0.0;
      if ({inside}) {{ v = value({where}, k0 + c * 8u + j); }}
      tw[((c * 8u + j) * {WIDTH}u + r) / 4u][r % 4u] = v;
    }}"""
