"""The id of each row's largest logit, the lowest of equal ones, and that logit; a NaN is larger than all."""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.shader import Shader, binding

WORKGROUP, GROUPS = 256, 64

INFINITY_KEY, NAN_KEY = 0xFF800000, 0xFFFFFFFF
"""What stands for infinity and for NaN among the keys."""

KEY = f"""fn key_of(v: f32) -> u32 {{
  let u = bitcast<u32>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) {{ return {NAN_KEY}u; }}
  return select(u | 0x80000000u, ~u, (u >> 31u) == 1u);
}}
fn before(a: vec2<u32>, b: vec2<u32>) -> bool {{ return a.x > b.x || (a.x == b.x && a.y < b.y); }}"""
"""Floats as integers of the same order: drivers may assume that there is no NaN among floats."""

_REDUCE = """best[t] = mine; workgroupBarrier();
  for (var s = WORKGROUPu / 2u; s > 0u; s >>= 1u) {
    if (t < s && before(best[t + s], best[t])) { best[t] = best[t + s]; }
    workgroupBarrier();
  }""".replace("WORKGROUP", str(WORKGROUP))


def partial(vocabulary: int) -> Shader:
    """For workgroups (GROUPS, rows). Bindings: logits float ``[rows, vocabulary]``; found (key, id) ``[rows,
    GROUPS]``."""
    each = -(-vocabulary // GROUPS)
    body = f"""var mine = vec2<u32>(0u, 0xffffffffu);
  let end = min((wid.x + 1u) * {each}u, {vocabulary}u);
  for (var i = wid.x * {each}u + t; i < end; i += {WORKGROUP}u) {{
    let seen = vec2<u32>(key_of(logits[wid.y * {vocabulary}u + i]), i);
    if (before(seen, mine)) {{ mine = seen; }}
  }}
  {_REDUCE}
  if (t == 0u) {{ found[wid.y * {GROUPS}u + wid.x] = best[0]; }}"""
    return _shader([("logits", "f32"), ("found", "vec2<u32>")], body)


def final() -> Shader:
    """For workgroups (1, rows). Bindings: found; chosen (key, id) ``[rows]``; ids ``[rows]``, for the next step."""
    body = f"""var mine = vec2<u32>(0u, 0xffffffffu);
  if (t < {GROUPS}u) {{ mine = found[wid.y * {GROUPS}u + t]; }}
  {_REDUCE}
  if (t == 0u) {{ chosen[wid.y] = best[0]; ids[wid.y] = best[0].y; }}"""
    return _shader([("found", "vec2<u32>"), ("chosen", "vec2<u32>"), ("ids", "u32")], body)


def _shader(names: list[tuple[str, str]], body: str) -> Shader:
    kinds = "r" + "w" * (len(names) - 1)
    bindings = [binding(index, kinds[index], *name) for index, name in enumerate(names)]
    code = f"""var<workgroup> best: array<vec2<u32>, {WORKGROUP}>;
@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  {body}
}}"""
    return Shader("\n".join([*bindings, KEY, code]), kinds)
