"""Reading memory and nothing else: what the products are compared with."""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.shader import GRID_X, Shader, binding

WORKGROUP, LOADS = 256, 8


def read(nbytes: int) -> tuple[Shader, tuple[int, int, int]]:
    """Of ``nbytes``, all but a rest of less than what a workgroup reads: bindings source and a word that is never
    written, and the workgroups."""
    loads = " ".join(f"s ^= source[at + {index * WORKGROUP}u];" for index in range(LOADS))
    code = f"""@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let at = (wid.x + wid.y * {GRID_X}u) * {WORKGROUP * LOADS}u + t;
  var s = vec4<u32>(0u); {loads}
  if ((s.x ^ s.y ^ s.z ^ s.w) == 0x12345678u) {{ word[0] = s.x; }}
}}"""
    groups = max(1, nbytes // (16 * WORKGROUP * LOADS))
    bindings = [binding(0, "r", "source", "vec4<u32>"), binding(1, "w", "word", "u32")]
    return Shader("\n".join([*bindings, code]), "rw"), (min(groups, GRID_X), -(-groups // GRID_X), 1)
