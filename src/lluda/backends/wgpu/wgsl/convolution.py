"""What code2wav does between its products: SnakeBeta, a convolution of each channel, and the one that makes samples.

Rows of a convolution's past stand above its input, so that its windows are runs of one memory.
"""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.shader import GRID_X, ROUNDED, Shader, Target, binding

_WORKGROUP = 128

_SINE = (1.0, -0.166666478, 0.00833289884, -0.000198008653, 2.59043009e-06)
"""sin(r) / r by powers of r^2: least squares at 4,000 Chebyshev nodes of [-pi/2, pi/2]; 2e-7 off in float32. WGSL's own
``sin`` may be off by 2^-11."""

_SINE_SQUARED = f"""fn sine_squared(v: vec4<f32>) -> vec4<f32> {{
  // Of period pi, of which the first part is exact: what it is multiplied with has few digits.
  let turns = round(v * 0.31830989);
  let r = fma(turns, vec4(-0.0009676535847), fma(turns, vec4(-3.140625), v));
  let z = r * r;
  let s = r * fma(z, fma(z, fma(z, fma(z, vec4({_SINE[4]}), vec4({_SINE[3]})), vec4({_SINE[2]})), vec4({_SINE[1]})),
    vec4({_SINE[0]}));
  return s * s;
}}"""


def snake(channels: int, above: int, rows: int) -> tuple[Shader, tuple[int, int, int]]:
    """``rounded(x + amplitude * sin(frequency * x)^2)``, so many rows down. Bindings: x float ``[rows, channels]``; y
    ``[above + rows, channels]``; frequencies and amplitudes float ``[2, channels]``."""
    vectors = channels // 4
    value = f"rounded(fma(act[{vectors}u + c], sine_squared(act[c] * x[i]), x[i]))"
    return _elementwise(value, _SINE_SQUARED, vectors, above, rows, beside=[("r", "act")])


def placed(channels: int, above: int, rows: int, *, to_bf16: bool) -> tuple[Shader, tuple[int, int, int]]:
    """x so many rows down, rounded ``to_bf16``. Bindings: x float ``[rows, channels]``; y ``[above + rows,
    channels]``."""
    return _elementwise("rounded(x[i])" if to_bf16 else "x[i]", "", channels // 4, above, rows, beside=[])


def _elementwise(
    value: str, functions: str, vectors: int, above: int, rows: int, *, beside: list[tuple[str, str]]
) -> tuple[Shader, tuple[int, int, int]]:
    code = f"""@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let i = (wid.x + wid.y * {GRID_X}u) * {_WORKGROUP}u + t; let c = i % {vectors}u;
  if (i < arrayLength(&x)) {{ y[i + {above * vectors}u] = {value}; }}
}}"""
    names = [("r", "x"), ("w", "y"), *beside]
    bindings = [binding(i, kind, name, "vec4<f32>") for i, (kind, name) in enumerate(names)]
    groups = -(-rows * vectors // _WORKGROUP)
    shader = Shader("\n".join([ROUNDED, functions, *bindings, code]), "".join(kind for kind, _ in names))
    return shader, (min(groups, GRID_X), -(-groups // GRID_X), 1)


def depthwise_normed(channels: int, taps: int, eps: float, target: Target) -> Shader:
    """For workgroups (rows): each channel's convolution with the ``taps - 1`` rows before, then LayerNorm, rounded.
    Bindings: x float ``[taps - 1 + rows, channels]``; bias and then weights float ``[1 + taps, channels]``; weights and
    biases of the norm float ``[2, channels]``; y ``[rows, channels]``."""
    vectors, shared = channels // 4, max(1, target.sum_floats(_WORKGROUP, _WORKGROUP))
    code = f"""var<workgroup> part: array<f32, {shared}>;
var<workgroup> convolved: array<vec4<f32>, {vectors}>;
@compute @workgroup_size({_WORKGROUP}) fn main({target.builtins}) {{
  {target.thread}
  var mean = 0.0; var square = 0.0;
  for (var i = t; i < {vectors}u; i += {_WORKGROUP}u) {{
    var v = kernel[i];
    for (var tap = 0u; tap < {taps}u; tap++) {{
      v = fma(x[(wid.x + tap) * {vectors}u + i], kernel[(tap + 1u) * {vectors}u + i], v);
    }}
    convolved[i] = v; mean += dot(v, vec4(1.0));
  }}
  {target.sum(["mean"], _WORKGROUP, _WORKGROUP)}
  mean /= {float(channels)};
  for (var i = t; i < {vectors}u; i += {_WORKGROUP}u) {{ let v = convolved[i] - vec4(mean); square += dot(v, v); }}
  {target.sum(["square"], _WORKGROUP, _WORKGROUP)}
  let scale = inverseSqrt(square / {float(channels)} + {eps});
  for (var i = t; i < {vectors}u; i += {_WORKGROUP}u) {{
    y[wid.x * {vectors}u + i] = rounded((convolved[i] - vec4(mean)) * scale * norm[i] + norm[{vectors}u + i]);
  }}
}}"""
    names = [("r", "x"), ("r", "kernel"), ("r", "norm"), ("w", "y")]
    bindings = [binding(i, kind, name, "vec4<f32>") for i, (kind, name) in enumerate(names)]
    return Shader("\n".join([ROUNDED, *bindings, code]), "rrrw")


def mono(channels: int, taps: int, rows: int) -> tuple[Shader, tuple[int, int, int]]:
    """A convolution to one channel, cut off at 1 and -1. Bindings: x float ``[taps - 1 + rows, channels]``; weights
    float ``[taps, channels]``; bias ``[1]``; y ``[rows]``."""
    vectors = channels // 4
    code = f"""@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let row = wid.x * {_WORKGROUP}u + t;
  if (row < arrayLength(&y)) {{
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < {taps * vectors}u; i++) {{ sum = fma(x[row * {vectors}u + i], kernel[i], sum); }}
    y[row] = clamp(dot(sum, vec4(1.0)) + bias[0], -1.0, 1.0);
  }}
}}"""
    names = [("r", "x", "vec4<f32>"), ("r", "kernel", "vec4<f32>"), ("r", "bias", "f32"), ("w", "y", "f32")]
    bindings = [binding(i, *each) for i, each in enumerate(names)]
    return Shader("\n".join([*bindings, code]), "rrrw"), (-(-rows // _WORKGROUP), 1, 1)
