"""Activations of encoders and of code2wav, as functions of one float."""

from __future__ import annotations

from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "silu"]

_ERFC = (
    -0.671794057, 0.672642469, 0.047342971, -0.0468789339, -0.00986954849,
    0.00871708896, 0.00175833586, -0.00205723825, -0.000187932485, 0.000326916022,
)  # fmt: skip
"""log(erfc(z) * exp(z^2) / u), u = 1 / (1 + z / 2), by powers of s = 2u - 1: least squares at 4,000 Chebyshev nodes of
u in [0.12, 1]. In float32 erfc is off by 2e-7 of itself, and by z^2 * 2^-24 for the exponential."""


def _polynomial() -> str:
    text = str(_ERFC[-1])
    for factor in reversed(_ERFC[:-1]):
        text = f"fma({text}, s, {factor})"
    return text


ACTIVATIONS: dict[Activation, str] = {
    "gelu": f"""fn gelu(v: f32) -> f32 {{
  let z = min(abs(v) * 0.70710678, 14.0); let u = 1.0 / (1.0 + 0.5 * z); let s = 2.0 * u - 1.0;
  let tail = 0.5 * u * exp({_polynomial()} - z * z);
  return v * select(1.0 - tail, tail, v < 0.0);
}}""",
    # exp of large numbers is the driver's choice; beyond 10 the result is 0 or v.
    "gelu_tanh": """fn gelu_tanh(v: f32) -> f32 {
  let a = clamp(0.7978845608 * (v + 0.044715 * v * v * v), -10.0, 10.0);
  return v * (1.0 - 1.0 / (1.0 + exp(2.0 * a)));
}""",
    "silu": "fn silu(v: f32) -> f32 { return v / (1.0 + exp(-v)); }",
}
"""By name. ``gelu`` is exact, by the error function, which WGSL lacks; ``gelu_tanh`` its approximation."""
