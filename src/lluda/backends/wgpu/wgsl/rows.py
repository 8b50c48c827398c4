"""What stands between the products of many rows: norms, SwiGLU, matrices in other forms as BF16."""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.embedding import value_of
from lluda.backends.wgpu.wgsl.shader import GRID_X, ROUNDED, Shader, Target, binding

_WORKGROUP = 128


def normed(columns: int, eps: float, target: Target) -> Shader:
    """For workgroups (rows): ``rounded(x / rms * norm)``, as a product's fused norm makes it. Bindings: x float
    ``[rows, columns]``; norm; y."""
    shared = max(1, target.sum_floats(_WORKGROUP, _WORKGROUP))
    code = f"""var<workgroup> part: array<f32, {shared}>;
@compute @workgroup_size({_WORKGROUP}) fn main({target.builtins}) {{
  {target.thread}
  let row = wid.x * {columns // 4}u; var square = 0.0;
  for (var i = t; i < {columns // 4}u; i += {_WORKGROUP}u) {{ let v = x[row + i]; square += dot(v, v); }}
  {target.sum(["square"], _WORKGROUP, _WORKGROUP)}
  let scale = inverseSqrt(square / {float(columns)} + {eps});
  for (var i = t; i < {columns // 4}u; i += {_WORKGROUP}u) {{ y[row + i] = rounded(x[row + i] * scale * norm[i]); }}
}}"""
    names = [("r", "x"), ("r", "norm"), ("w", "y")]
    bindings = [binding(i, kind, name, "vec4<f32>") for i, (kind, name) in enumerate(names)]
    return Shader("\n".join([ROUNDED, *bindings, code]), "rrw")


def layer_normed(columns: int, eps: float, target: Target) -> Shader:
    """For workgroups (rows): LayerNorm, rounded. Bindings: x float ``[rows, columns]``; weights and biases float ``[2,
    columns]``; y."""
    shared, vectors = max(1, target.sum_floats(_WORKGROUP, _WORKGROUP)), columns // 4
    code = f"""var<workgroup> part: array<f32, {shared}>;
@compute @workgroup_size({_WORKGROUP}) fn main({target.builtins}) {{
  {target.thread}
  let row = wid.x * {vectors}u; var mean = 0.0; var square = 0.0;
  for (var i = t; i < {vectors}u; i += {_WORKGROUP}u) {{ mean += dot(x[row + i], vec4(1.0)); }}
  {target.sum(["mean"], _WORKGROUP, _WORKGROUP)}
  mean /= {float(columns)};
  for (var i = t; i < {vectors}u; i += {_WORKGROUP}u) {{ let v = x[row + i] - vec4(mean); square += dot(v, v); }}
  {target.sum(["square"], _WORKGROUP, _WORKGROUP)}
  let scale = inverseSqrt(square / {float(columns)} + {eps});
  for (var i = t; i < {vectors}u; i += {_WORKGROUP}u) {{
    y[row + i] = rounded((x[row + i] - vec4(mean)) * scale * norm[i] + norm[{vectors}u + i]);
  }}
}}"""
    names = [("r", "x"), ("r", "norm"), ("w", "y")]
    bindings = [binding(i, kind, name, "vec4<f32>") for i, (kind, name) in enumerate(names)]
    return Shader("\n".join([ROUNDED, *bindings, code]), "rrw")


def gated(width: int, count: int) -> tuple[Shader, tuple[int, int, int]]:
    """``rounded(silu(gate) * up)`` of ``count`` rows, where gate and up ``[width]`` stand side by side. Bindings: both
    float ``[count, 2 * width]``; y ``[count, width]``."""
    code = f"""@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let c = wid.x * {_WORKGROUP}u + t;
  if (c < {width}u) {{
    let gate = x[wid.y * {2 * width}u + c]; let up = x[wid.y * {2 * width}u + {width}u + c];
    y[wid.y * {width}u + c] = rounded(vec4(gate / (1.0 + exp(-gate)) * up)).x;
  }}
}}"""
    bindings = [binding(0, "r", "x", "f32"), binding(1, "w", "y", "f32")]
    return Shader("\n".join([ROUNDED, *bindings, code]), "rw"), (-(-width // _WORKGROUP), count, 1)


def decoded(rows: int, columns: int) -> tuple[Shader, tuple[int, int, int]]:
    """A packed matrix as BF16. Bindings: w, y (u32), side."""
    words = rows * columns // 2
    groups = -(-words // _WORKGROUP)
    code = f"""{value_of("packed", rows, columns)}
@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let i = (wid.x + wid.y * {GRID_X}u) * {_WORKGROUP}u + t;
  if (i < {words}u) {{
    let row = i / {columns // 2}u; let c = i % {columns // 2}u * 2u;
    let v = bitcast<vec4<u32>>(rounded(vec4(value(row, c), value(row, c + 1u), 0.0, 0.0)));
    y[i] = (v.x >> 16u) | v.y;
  }}
}}"""
    bindings = [binding(0, "r", "w", "u32"), binding(1, "w", "y", "u32"), binding(2, "r", "side", "u32")]
    return Shader("\n".join([ROUNDED, *bindings, code]), "rwr"), (min(groups, GRID_X), -(-groups // GRID_X), 1)
