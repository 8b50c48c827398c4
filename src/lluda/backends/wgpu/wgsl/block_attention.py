"""Attention of encoders: each row sees the rows of its own block, in both directions.

Rows are queries, keys and values of all heads side by side, float ``[rows, 3 * heads * head_dim]``. A workgroup takes
some queries of one head and the keys of their blocks, some at a time, with an online softmax.
"""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.shader import ROUNDED, Shader, binding

QUERIES, _KEYS = 16, 32
_WORKGROUP = 128
_EACH = _WORKGROUP // QUERIES
"""Threads that share a query's scores."""


def takes(head_dim: int) -> bool:
    """Whether there is a kernel for such heads: workgroup memory holds them."""
    return head_dim % 4 == 0 and head_dim <= 128


def rotated(heads: int, head_dim: int, above: int = 0) -> Shader:
    """For workgroups (rows): queries and keys turned by halves, everything rounded, so many rows down. Bindings: qkv;
    cosines and sines float ``[rows, head_dim]``."""
    D, half = head_dim, head_dim // 2
    code = f"""@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  for (var i = t; i < {3 * heads * half}u; i += {_WORKGROUP}u) {{
    let at = (wid.x + {above}u) * {3 * heads * D}u + i / {half}u * {D}u + i % {half}u;
    let a = qkv[at]; let b = qkv[at + {half}u]; var both = vec4(a, b, 0.0, 0.0);
    if (i < {2 * heads * half}u) {{
      let c = turn[wid.x * {D}u + i % {half}u]; let s = turn[wid.x * {D}u + {half}u + i % {half}u];
      both = vec4(a * c - b * s, b * c + a * s, 0.0, 0.0);
    }}
    let kept = rounded(both); qkv[at] = kept.x; qkv[at + {half}u] = kept.y;
  }}
}}"""
    bindings = [binding(0, "w", "qkv", "f32"), binding(1, "r", "turn", "f32")]
    return Shader("\n".join([ROUNDED, *bindings, code]), "wr")


def attention(heads: int, head_dim: int, above: int = 0) -> Shader:
    """For workgroups (heads, rows / QUERIES). Bindings: qkv, of which the rows ``above`` have keys and values alone;
    bounds u32 ``[rows, 2]``: of each other row first row and end of what it sees, which do not fall from row to row;
    out float ``[rows, heads * head_dim]``, rounded."""
    D, sums = head_dim // 4, -(-QUERIES * head_dim // 4 // _WORKGROUP)
    each, scores = range(sums), range(_KEYS // _EACH)
    inside = [
        f"if (t + {j * _WORKGROUP}u < {QUERIES * D}u) " if (j + 1) * _WORKGROUP > QUERIES * D else "" for j in each
    ]
    dots = " ".join(f"s{n} += dot(v, kv[(l + {n * _EACH}u) * {D}u + d]);" for n in scores)
    peaks = "\n".join(
        f"    {{ let place = at + l + {n * _EACH}u; if (place < first || place >= end) {{ s{n} = -3.4e38; }} }}"
        for n in scores
    )
    kept = " ".join(f"let e{n} = exp(s{n} - peak); sc[query * {_KEYS}u + l + {n * _EACH}u] = e{n};" for n in scores)
    mixes = "\n".join(
        f"""    {inside[j]}{{
      let i = t + {j * _WORKGROUP}u; let q = i / {D}u; let d = i % {D}u; a{j} *= shrinks[q];
      for (var k = 0u; k < {_KEYS}u; k++) {{ a{j} = fma(vec4(sc[q * {_KEYS}u + k]), kv[k * {D}u + d], a{j}); }}
    }}"""
        for j in each
    )
    stores = "\n".join(
        f"""  {inside[j]}{{
    let i = t + {j * _WORKGROUP}u; let q = i / {D}u;
    out[((m0 + q) * {heads}u + wid.x) * {D}u + i % {D}u] = rounded(a{j} / vec4(shrinks[q]));
  }}"""
        for j in each
    )
    code = f"""var<workgroup> qs: array<vec4<f32>, {QUERIES * D}>;
var<workgroup> kv: array<vec4<f32>, {_KEYS * D}>;
var<workgroup> sc: array<f32, {QUERIES * _KEYS}>;
var<workgroup> peaks: array<f32, {_WORKGROUP}>; var<workgroup> sums: array<f32, {_WORKGROUP}>;
var<workgroup> shrinks: array<f32, {QUERIES}>;
fn part(row: u32, which: u32, head: u32, d: u32) -> vec4<f32> {{
  return qkv[((row * 3u + which) * {heads}u + head) * {D}u + d];
}}
@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let m0 = wid.y * {QUERIES}u; let query = t / {_EACH}u; let l = t % {_EACH}u;
  let first = bounds[(m0 + query) * 2u]; let end = bounds[(m0 + query) * 2u + 1u];
  let last = bounds[(m0 + {QUERIES - 1}u) * 2u + 1u];
  for (var i = t; i < {QUERIES * D}u; i += {_WORKGROUP}u) {{
    qs[i] = part(m0 + {above}u + i / {D}u, 0u, wid.x, i % {D}u) * {head_dim**-0.5};
  }}
  {" ".join(f"var a{j} = vec4<f32>(0.0);" for j in each)}
  var high = -3.4e38; var total = 0.0;
  for (var at = bounds[m0 * 2u]; at < last; at += {_KEYS}u) {{
    for (var i = t; i < {_KEYS * D}u; i += {_WORKGROUP}u) {{
      kv[i] = part(min(at + i / {D}u, last - 1u), 1u, wid.x, i % {D}u);
    }}
    workgroupBarrier();
    {" ".join(f"var s{n} = 0.0;" for n in scores)}
    for (var d = 0u; d < {D}u; d++) {{ let v = qs[query * {D}u + d]; {dots} }}
{peaks}
    peaks[t] = {_nested("max", [f"s{n}" for n in scores])};
    workgroupBarrier();
    var peak = high;
    for (var j = 0u; j < {_EACH}u; j++) {{ peak = max(peak, peaks[query * {_EACH}u + j]); }}
    {kept}
    sums[t] = {" + ".join(f"e{n}" for n in scores)};
    let shrink = exp(high - peak); high = peak;
    if (l == 0u) {{ shrinks[query] = shrink; }}
    for (var i = t; i < {_KEYS * D}u; i += {_WORKGROUP}u) {{
      kv[i] = part(min(at + i / {D}u, last - 1u), 2u, wid.x, i % {D}u);
    }}
    workgroupBarrier();
    total *= shrink;
    for (var j = 0u; j < {_EACH}u; j++) {{ total += sums[query * {_EACH}u + j]; }}
{mixes}
    workgroupBarrier();
  }}
  if (l == 0u) {{ shrinks[query] = total; }}
  workgroupBarrier();
{stores}
}}"""
    names = [("r", "qkv", "vec4<f32>"), ("r", "bounds", "u32"), ("w", "out", "vec4<f32>")]
    bindings = [binding(i, *each) for i, each in enumerate(names)]
    return Shader("\n".join([ROUNDED, *bindings, code]), "rrw")


def _nested(name: str, values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{name}({values[0]}, {_nested(name, values[1:])})"
