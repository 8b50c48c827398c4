"""Decode attention: one new row of each sequence, over keys and values in BF16.

Keys and values of a layer lie as ``[positions, kv_heads, head_dim]``; a sequence has a run of positions. The positions
of a row are split among workgroups, each of which leaves the largest score, the sum of exponentials and the mixed
values; `combine` puts the parts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lluda.backends.wgpu.wgsl.shader import ROUNDED, Shader, Target, binding

STATE = 2
"""Words that say of a row: positions filled before it, and where its run begins."""

WORKGROUP = 128
_AT_ONCE, _MOST_SCORES = 4, 16
"""Positions that a group of lanes asks for before it waits, and scores of theirs that it holds, at most."""
_LEAST = 64
"""Positions that a split has at least."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Of a layer: query heads, key and value heads, the width of each; ``eps`` of the norms of queries and keys, None
    where there are none; ``splits`` of a row's positions."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float | None
    splits: int = 8

    @property
    def width(self) -> int:
        """Of a row of queries, keys and values side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def part(self) -> int:
        """Floats that a split leaves of each query head."""
        return self.head_dim + 2


def attention(heads: Heads, target: Target, *, stored: bool = False) -> Shader:
    """For workgroups (kv_heads, splits, rows). ``stored``: `store` has put the rows' keys and values away, so that rows
    of one sequence see each other. Bindings: qkv float ``[rows, width]``; keys; values; state u32 ``[rows, STATE]``;
    cosines and sines float ``[rows, head_dim]``; parts float ``[rows, heads, splits, part]``; norms float ``[2,
    head_dim]``."""
    wanted = None if stored else "end == length && p == 0u"
    text = [_head(heads, target), _queries(heads), _new_entry(heads, wanted)]
    return _shader(heads, [*text, _positions(heads, target), _parts(heads)])


def store(heads: Heads, target: Target) -> Shader:
    """For workgroups (kv_heads, 1, rows): keys and values of the rows alone. Bindings as of `attention`."""
    return _shader(heads, [_head(heads, target), _queries(heads), _new_entry(heads, "p == 0u")])


def _shader(heads: Heads, text: Sequence[str]) -> Shader:
    kinds = "rwwrrw" + ("" if heads.eps is None else "r")
    names = [("qkv", "f32"), ("keys", "vec4<u32>"), ("values", "vec4<u32>"), ("state", "u32")]
    names += [("turn", "f32"), ("parts", "f32"), ("norms", "f32")]
    bindings = [binding(i, kind, *names[i]) for i, kind in enumerate(kinds)]
    return Shader("\n".join([ROUNDED, *bindings, *text, "}"]), kinds)


def _at_once(heads: Heads) -> int:
    """Positions at once; fewer where many query heads share them."""
    return max(1, min(_AT_ONCE, _MOST_SCORES // (heads.heads // heads.kv_heads)))


def _lanes(heads: Heads) -> int:
    """Threads that share a position, each with a 16-byte load."""
    return heads.head_dim // 8


def _head(heads: Heads, target: Target) -> str:
    D, group, lanes = heads.head_dim, heads.heads // heads.kv_heads, _lanes(heads)
    places = WORKGROUP // lanes
    shared = max(1, group * _at_once(heads) * target.sum_floats(lanes, WORKGROUP))
    return f"""var<workgroup> hs: array<f32, {(group + 2) * D}>;
var<workgroup> sq: array<f32, {(group + 1) * 4}>;
var<workgroup> red: array<f32, {shared}>;
var<workgroup> sc: array<f32, {2 * places}>;
var<workgroup> mix: array<f32, {places * D}>;
fn bits(v: f32) -> u32 {{ return bitcast<u32>(rounded(vec4(v)).x) >> 16u; }}
@compute @workgroup_size({WORKGROUP}) fn main({target.builtins}) {{
  {target.thread}
  let head = wid.x; let split = wid.y; let row = wid.z;
  let length = state[row * {STATE}u] + 1u;
  let per = max((length + {heads.splits - 1}u) / {heads.splits}u, {_LEAST}u);
  let begin = split * per; let end = min(begin + per, length);
  if (begin >= length) {{ return; }}"""


def _queries(heads: Heads) -> str:
    """The group's query heads (0 to group - 1), the new key (group) and value: normed, rotated, rounded."""
    D, group, half = heads.head_dim, heads.heads // heads.kv_heads, heads.head_dim // 2
    scaled = [f"hs[h * {D}u + d]", f"hs[h * {D}u + d + {half}u]"]
    scale = ""
    if heads.eps is not None:
        square = "(sq[h * 4u] + sq[h * 4u + 1u] + sq[h * 4u + 2u] + sq[h * 4u + 3u])"
        scale = f"""let scale = inverseSqrt({square} / {float(D)} + {heads.eps});
    let which = select(0u, {D}u, h == {group}u);"""
        scaled = [f"{scaled[0]} * scale * norms[which + d]", f"{scaled[1]} * scale * norms[which + d + {half}u]"]
    return f"""  for (var i = t; i < {(group + 2) * D}u; i += {WORKGROUP}u) {{
    let h = i / {D}u; let d = i % {D}u;
    let key = ({heads.heads}u + head) * {D}u; let value = ({heads.heads + heads.kv_heads}u + head) * {D}u;
    let at = select(select(value, key, h == {group}u), (head * {group}u + h) * {D}u, h < {group}u);
    hs[i] = qkv[row * {heads.width}u + at + d];
  }}
  workgroupBarrier();
  for (var i = t; i < {(group + 1) * 4}u; i += {WORKGROUP}u) {{
    var s = 0.0;
    for (var d = 0u; d < {D // 4}u; d++) {{ let v = hs[i / 4u * {D}u + d * 4u + i % 4u]; s += v * v; }}
    sq[i] = s;
  }}
  workgroupBarrier();
  for (var i = t; i < {(group + 1) * half}u; i += {WORKGROUP}u) {{
    let h = i / {half}u; let d = i % {half}u;
    {scale}
    let a = {scaled[0]}; let b = {scaled[1]};
    let c = turn[row * {D}u + d]; let s = turn[row * {D}u + {half}u + d];
    hs[h * {D}u + d] = rounded(vec4(a * c - b * s)).x;
    hs[h * {D}u + d + {half}u] = rounded(vec4(b * c + a * s)).x;
  }}
  workgroupBarrier();"""


def _new_entry(heads: Heads, wanted: str | None) -> str:
    """The new key and value are used from registers, and stored by the threads for which ``wanted`` holds."""
    D, group, lanes = heads.head_dim, heads.heads // heads.kv_heads, _lanes(heads)
    stride = heads.kv_heads * lanes
    words = "\n".join(
        f"  let {name} = vec4("
        + ", ".join(
            f"bits(hs[{first * D}u + l * 8u + {2 * j}u]) | (bits(hs[{first * D}u + l * 8u + {2 * j + 1}u]) << 16u)"
            for j in range(4)
        )
        + ");"
        for name, first in (("newk", group), ("newv", group + 1))
    )
    queries = "\n".join(
        f"  let qe{g} = vec4({', '.join(f'hs[{g * D}u + l * 8u + {j}u]' for j in (0, 2, 4, 6))});\n"
        f"  let qo{g} = vec4({', '.join(f'hs[{g * D}u + l * 8u + {j}u]' for j in (1, 3, 5, 7))});\n"
        f"  var high{g} = -3.4e38; var total{g} = 0.0; var me{g} = vec4<f32>(0.0); var mo{g} = vec4<f32>(0.0);"
        for g in range(group)
    )
    stores = f"""  if ({wanted}) {{
    keys[base + (length - 1u) * {stride}u] = newk; values[base + (length - 1u) * {stride}u] = newv;
  }}"""
    return f"""  let p = t / {lanes}u; let l = t % {lanes}u;
  let base = state[row * {STATE}u + 1u] * {stride}u + head * {lanes}u + l;
{words}
{stores if wanted else ""}
{queries}"""


def _entry(name: str, new: str, place: str, stride: int, target: str) -> str:
    """A position's words, as two vec4 of even and odd columns."""
    return f"""let {target}_words = select({name}[base + {place} * {stride}u], {new}, vec4({place} == length - 1u));
      let {target}_lo = bitcast<vec4<f32>>({target}_words << vec4(16u));
      let {target}_hi = bitcast<vec4<f32>>({target}_words & vec4(0xffff0000u));"""


def _positions(heads: Heads, target: Target) -> str:
    """The split's positions, several at once for each group of lanes, which keeps its own largest score: nobody waits
    for the others before the end."""
    group, lanes = heads.heads // heads.kv_heads, _lanes(heads)
    places, stride, each, several = WORKGROUP // lanes, heads.kv_heads * lanes, range(group), range(_at_once(heads))
    lines = [f"  for (var at = begin; at < end; at += {places * len(several)}u) {{"]
    for u in several:
        lines += [
            f"    let place{u} = min(at + {u * places}u + p, end - 1u);",
            "    " + _entry("keys", "newk", f"place{u}", stride, f"k{u}"),
            "    " + _entry("values", "newv", f"place{u}", stride, f"v{u}"),
            *(
                f"    var s{u}_{g} = (dot(k{u}_lo, qe{g}) + dot(k{u}_hi, qo{g})) * {heads.head_dim**-0.5};"
                for g in each
            ),
        ]
    names = [f"s{u}_{g}" for u in several for g in each]
    lines.append(target.sum(names, lanes, WORKGROUP, "red"))
    for u in several:
        lines += [f"    let inside{u} = at + {u * places}u + p < end;"]
    for g in each:
        peak = f"high{g}"
        for u in several:
            peak = f"max({peak}, select(-3.4e38, s{u}_{g}, inside{u}))"
        lines += [
            f"    let peak{g} = {peak}; let shrink{g} = exp(high{g} - peak{g}); high{g} = peak{g};",
            f"    total{g} *= shrink{g}; me{g} *= shrink{g}; mo{g} *= shrink{g};",
        ]
        for u in several:
            lines += [
                f"    let e{u}_{g} = select(0.0, exp(s{u}_{g} - peak{g}), inside{u});",
                f"    total{g} += e{u}_{g}; me{g} += e{u}_{g} * v{u}_lo; mo{g} += e{u}_{g} * v{u}_hi;",
            ]
    return "\n".join([*lines, "  }"])


def _parts(heads: Heads) -> str:
    """The groups of lanes put together."""
    D, group, lanes = heads.head_dim, heads.heads // heads.kv_heads, _lanes(heads)
    places, text = WORKGROUP // lanes, []
    for g in range(group):
        at = f"((row * {heads.heads}u + head * {group}u + {g}u) * {heads.splits}u + split) * {heads.part}u"
        stores = " ".join(
            f"mix[p * {D}u + l * 8u + {2 * j}u] = me{g}.{axis}; mix[p * {D}u + l * 8u + {2 * j + 1}u] = mo{g}.{axis};"
            for j, axis in enumerate("xyzw")
        )
        text.append(f"""  {stores}
  if (l == 0u) {{ sc[p] = high{g}; sc[{places}u + p] = total{g}; }}
  workgroupBarrier();
  {{
    var peak = sc[0]; for (var j = 1u; j < {places}u; j++) {{ peak = max(peak, sc[j]); }}
    for (var d = t; d < {D}u; d += {WORKGROUP}u) {{
      var s = 0.0; for (var j = 0u; j < {places}u; j++) {{ s += mix[j * {D}u + d] * exp(sc[j] - peak); }}
      parts[{at} + d] = s;
    }}
    if (t == 0u) {{
      var s = 0.0; for (var j = 0u; j < {places}u; j++) {{ s += sc[{places}u + j] * exp(sc[j] - peak); }}
      parts[{at} + {D}u] = peak; parts[{at} + {D + 1}u] = s;
    }}
  }}
  workgroupBarrier();""")
    return "\n".join(text)


def combine(heads: Heads) -> Shader:
    """For workgroups (heads, rows). Bindings: parts; state; out float ``[rows, heads * head_dim]``, rounded."""
    D, splits = heads.head_dim, heads.splits
    kinds = "rrw"
    names = [("parts", "f32"), ("state", "u32"), ("out", "f32")]
    bindings = [binding(i, kind, *names[i]) for i, kind in enumerate(kinds)]
    code = f"""@compute @workgroup_size({D})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) d: u32) {{
  let length = state[wid.y * {STATE}u] + 1u;
  let per = max((length + {splits - 1}u) / {splits}u, {_LEAST}u); let used = (length + per - 1u) / per;
  let head = wid.y * {heads.heads}u + wid.x;
  var high = -3.4e38; var total = 0.0; var mixed = 0.0;
  for (var i = 0u; i < used; i++) {{
    let at = (head * {splits}u + i) * {heads.part}u;
    let its = parts[at + {D}u]; let peak = max(high, its);
    let a = exp(high - peak); let b = exp(its - peak);
    total = total * a + parts[at + {D + 1}u] * b; mixed = mixed * a + parts[at + d] * b; high = peak;
  }}
  out[head * {D}u + d] = rounded(vec4(mixed / total)).x;
}}"""
    return Shader("\n".join([ROUNDED, *bindings, code]), kinds)


def takes(heads: Heads) -> bool:
    """Whether there is a kernel for such heads: workgroup memory holds them, and lanes are a power of two."""
    lanes, group = _lanes(heads), heads.heads // heads.kv_heads
    powers = lanes in (1, 2, 4, 8, 16, 32) and heads.head_dim == 8 * lanes
    places = WORKGROUP // max(lanes, 1)
    floats = (group + 2) * heads.head_dim + group * (_at_once(heads) * WORKGROUP + 4) + places * (heads.head_dim + 2)
    return powers and 4 * floats <= 28 * 1024
