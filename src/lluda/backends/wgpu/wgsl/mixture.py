"""Which experts run: softmax over the router's logits, the most probable ones, their weights."""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.shader import Shader, binding

WORKGROUP = 64
MAX_EXPERTS = 1024


def choice_words(top_k: int) -> int:
    """Words of a row's choice: ids, weights (float), the shared expert's gate (float)."""
    return 2 * top_k + 1


def route(experts: int, top_k: int, *, normalise: bool, shared: bool) -> Shader:
    """For workgroups (rows). Bindings: logits float ``[rows, experts]``, one more column where ``shared``; choice u32
    ``[rows, choice_words]``. Of equal probabilities the lower expert comes first."""
    width = experts + shared
    total = "kept" if normalise else "total"
    gate = f"choice[at + {2 * top_k}u] = bitcast<u32>(logits[row * {width}u + {experts}u]);" if shared else ""
    code = f"""var<workgroup> p: array<f32, {experts}>;
var<workgroup> high: array<f32, {WORKGROUP}>; var<workgroup> where_: array<u32, {WORKGROUP}>;
var<workgroup> sums: array<f32, {WORKGROUP}>;
@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let row = wid.x; let at = row * {choice_words(top_k)}u;
  var peak = 0.0; var total = 0.0; var kept = 0.0;
  for (var e = t; e < {experts}u; e += {WORKGROUP}u) {{ p[e] = logits[row * {width}u + e]; }}
  for (var k = 0u; k < {top_k}u; k++) {{
    var mine = -3.4e38; var id = {experts}u;
    workgroupBarrier();
    for (var e = t; e < {experts}u; e += {WORKGROUP}u) {{
      if (p[e] > mine || id == {experts}u) {{ mine = p[e]; id = e; }}
    }}
    high[t] = mine; where_[t] = id; workgroupBarrier();
    for (var s = {WORKGROUP // 2}u; s > 0u; s >>= 1u) {{
      if (t < s) {{
        let other = high[t + s]; let its = where_[t + s];
        if (its < {experts}u && (other > high[t] || (other == high[t] && its < where_[t]))) {{
          high[t] = other; where_[t] = its;
        }}
      }}
      workgroupBarrier();
    }}
    if (k == 0u) {{
      peak = high[0];
      var sum = 0.0;
      for (var e = t; e < {experts}u; e += {WORKGROUP}u) {{ sum += exp(p[e] - peak); }}
      sums[t] = sum; workgroupBarrier();
      for (var j = 0u; j < {WORKGROUP}u; j++) {{ total += sums[j]; }}
    }}
    if (t == 0u) {{
      let weight = exp(high[0] - peak); kept += weight;
      choice[at + k] = where_[0]; choice[at + {top_k}u + k] = bitcast<u32>(weight);
      p[where_[0]] = -3.4e38;
    }}
  }}
  if (t == 0u) {{
    for (var k = 0u; k < {top_k}u; k++) {{
      choice[at + {top_k}u + k] = bitcast<u32>(bitcast<f32>(choice[at + {top_k}u + k]) / {total});
    }}
    {gate}
  }}
}}"""
    bindings = [binding(0, "r", "logits", "f32"), binding(1, "w", "choice", "u32")]
    return Shader("\n".join([*bindings, code]), "rw")
