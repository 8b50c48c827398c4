"""Products of many rows: tiles of 64 by 64, whose inputs pass through workgroup memory as float32."""

from __future__ import annotations

from typing import Literal

from lluda.backends.wgpu.wgsl.shader import Shader, binding

TILE = 64
_DEPTH, _WORKGROUP = 32, 256


def product(
    rows: int, columns: int, width: int, first: int, count: int, mode: Literal["store", "add"], skipped: int = 0
) -> tuple[Shader, tuple[int, int, int]]:
    """``y[:, first : first + rows] = x @ matrix.T`` for ``count`` rows x (float, a multiple of TILE of them), of which
    y has ``width`` each; ``add``: added to it. Bindings: matrix BF16 ``[skipped + rows, columns]``, of which the first
    rows are not looked at, columns a multiple of 8; x; y."""
    assert count % TILE == 0 and columns % 8 == 0, f"{count} rows of {columns} columns"
    result = "=" if mode == "store" else "+="
    stores = "\n".join(
        f"    for (var j = 0u; j < 4u; j++) {{ let n = n0 + tx * 4u + j; if (n < {rows}u) {{ "
        f"y[(m0 + ty * 4u + {i}u) * {width}u + {first}u + n] {result} a{i}[j]; }} }}"
        for i in range(4)
    )
    code = f"""var<workgroup> tx_: array<vec4<f32>, {_DEPTH * TILE // 4}>;
var<workgroup> tw: array<vec4<f32>, {_DEPTH * TILE // 4}>;
@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let n0 = wid.x * {TILE}u; let m0 = wid.y * {TILE}u; let tx = t % 16u; let ty = t / 16u;
  var a0 = vec4<f32>(0.0); var a1 = vec4<f32>(0.0); var a2 = vec4<f32>(0.0); var a3 = vec4<f32>(0.0);
  for (var k0 = 0u; k0 < {columns}u; k0 += {_DEPTH}u) {{
    for (var i = t; i < {_DEPTH * TILE // 4}u; i += {_WORKGROUP}u) {{
      let r = i / 8u; let c = i % 8u; var v = vec4<f32>(0.0);
      if (k0 + c * 4u < {columns}u) {{ v = x[((m0 + r) * {columns}u + k0) / 4u + c]; }}
      for (var j = 0u; j < 4u; j++) {{ tx_[((c * 4u + j) * {TILE}u + r) / 4u][r % 4u] = v[j]; }}
    }}
    let r = t / 4u; let c = t % 4u; var v = vec4<u32>(0u);
    if (n0 + r < {rows}u && k0 + c * 8u < {columns}u) {{ v = w[(({skipped}u + n0 + r) * {columns}u + k0) / 8u + c]; }}
    for (var j = 0u; j < 4u; j++) {{
      tw[((c * 8u + 2u * j) * {TILE}u + r) / 4u][r % 4u] = bitcast<f32>(v[j] << 16u);
      tw[((c * 8u + 2u * j + 1u) * {TILE}u + r) / 4u][r % 4u] = bitcast<f32>(v[j] & 0xffff0000u);
    }}
    workgroupBarrier();
    for (var k = 0u; k < {_DEPTH}u; k++) {{
      let p = tx_[k * 16u + ty]; let q = tw[k * 16u + tx];
      a0 = fma(vec4(p.x), q, a0); a1 = fma(vec4(p.y), q, a1); a2 = fma(vec4(p.z), q, a2); a3 = fma(vec4(p.w), q, a3);
    }}
    workgroupBarrier();
  }}
{stores}
}}"""
    bindings = [binding(0, "r", "w", "vec4<u32>"), binding(1, "r", "x", "vec4<f32>"), binding(2, "w", "y", "f32")]
    return Shader("\n".join([*bindings, code]), "rrw"), (-(-rows // TILE), count // TILE, 1)
