"""Rows of an embedding table, in whatever form it is."""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.forms import HALF_AT
from lluda.backends.wgpu.wgsl.shader import Shader, binding

WORKGROUP = 128

_BF16 = """fn value(id: u32, c: u32) -> f32 {
  let word = w[id * COLUMNSu / 2u + c / 2u];
  return bitcast<f32>(select(word << 16u, word & 0xffff0000u, c % 2u == 1u));
}"""
_PACKED = """fn byte(at: u32) -> u32 { return (w[at / 4u] >> (at % 4u * 8u)) & 0xffu; }
fn value(id: u32, c: u32) -> f32 {
  let block = (id * COLUMNSu + c) / 128u * 192u;
  let place = c % 64u; let inside = place % 32u / 8u * 16u + place / 32u * 8u + place % 8u;
  let kept = byte(block + c % 128u / 64u * 64u + inside);
  let code = (byte(block + 128u + inside) >> (c % 128u / 64u * 4u)) & 15u;
  if (code == 0u) {
    for (var e = side[1u + id]; e < side[2u + id]; e++) {
      let at = 2u + ROWSu + 2u * e;
      if (side[at] == c) { return bitcast<f32>(side[at + 1u] << 16u); }
    }
    return 0.0;
  }
  let bits = ((kept & 0x80u) << 24u) | (code << 23u) | ((kept & 0x7fu) << 16u);
  return bitcast<f32>(bits) * 0x1p64f * bitcast<f32>(side[0]);
}"""
_Q8 = (
    HALF_AT
    + """
fn value(id: u32, c: u32) -> f32 {
  let at = id * COLUMNSu + c;
  return half_at(at / 32u) * f32(unpack4xI8(w[at / 4u])[at % 4u]);
}"""
)
_VALUE = {"bf16": _BF16, "packed": _PACKED, "q8_0": _Q8}


def value_of(form: str, rows: int, columns: int) -> str:
    """The function ``value(row, column)`` of a matrix in ``w: array<u32>``, with what lies beside it in ``side``."""
    return _VALUE[form].replace("COLUMNS", str(columns)).replace("ROWS", str(rows))


def lookup(form: str, first: int, count: int, columns: int) -> Shader:
    """For workgroups (columns / WORKGROUP, rows): x ``[rows, columns]`` of the rows whose ids are among the ``count``
    of this part of the table, from ``first`` on. Bindings: w, ids, x, and where the form has one side."""
    kinds, names = "rrw", [("w", "u32"), ("ids", "u32"), ("x", "f32")]
    if form != "bf16":
        kinds, names = kinds + "r", [*names, ("side", "u32")]
    bindings = [binding(i, kind, *names[i]) for i, kind in enumerate(kinds)]
    main = f"""@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let c = wid.x * {WORKGROUP}u + t; let id = ids[wid.y];
  if (c < {columns}u && id >= {first}u && id < {first + count}u) {{
    x[wid.y * {columns}u + c] = value(id - {first}u, c);
  }}
}}"""
    return Shader("\n".join([*bindings, value_of(form, count, columns), main]), kinds)
