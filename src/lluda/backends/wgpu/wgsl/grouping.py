"""Rows of a prompt, put together by the experts that they chose, and their outputs put back."""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.mixture import choice_words
from lluda.backends.wgpu.wgsl.shader import Shader, binding

_WORKGROUP = 256


def most_tiles(pairs: int, experts: int, tile: int) -> int:
    """Tiles that so many pairs of a row and its expert fill at most: each expert's last may be less than full."""
    return min(pairs, pairs // tile + experts)


def plan_words(pairs: int, experts: int, tile: int) -> int:
    """Words of a plan: how many tiles; where the pairs begin; of each tile its expert, and the first of its pairs and
    the end of them, among the pairs in order; the pairs (row * top_k + place among the row's experts) in order."""
    return 2 + 3 * most_tiles(pairs, experts, tile) + pairs


def group(experts: int, top_k: int, rows: int, tile: int) -> Shader:
    """For one workgroup. Bindings: choice u32 ``[rows, choice_words]``, as `mixture.route` wrote it; plan u32
    ``[plan_words]``. Which of an expert's pairs comes first is by chance, and changes no result."""
    pairs = rows * top_k
    order = 2 + 3 * most_tiles(pairs, experts, tile)
    code = f"""var<workgroup> counts: array<atomic<u32>, {experts}>;
fn expert_of(pair: u32) -> u32 {{ return choice[pair / {top_k}u * {choice_words(top_k)}u + pair % {top_k}u]; }}
@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(local_invocation_index) t: u32) {{
  for (var e = t; e < {experts}u; e += {_WORKGROUP}u) {{ atomicStore(&counts[e], 0u); }}
  workgroupBarrier();
  for (var pair = t; pair < {pairs}u; pair += {_WORKGROUP}u) {{ atomicAdd(&counts[expert_of(pair)], 1u); }}
  workgroupBarrier();
  if (t == 0u) {{
    var begin = 0u; var tiles = 0u;
    for (var e = 0u; e < {experts}u; e++) {{
      let end = begin + atomicLoad(&counts[e]);
      atomicStore(&counts[e], begin);
      for (; begin < end; begin = min(begin + {tile}u, end)) {{
        plan[2u + tiles * 3u] = e; plan[3u + tiles * 3u] = begin; plan[4u + tiles * 3u] = min(begin + {tile}u, end);
        tiles++;
      }}
    }}
    plan[0] = tiles; plan[1] = {order}u;
  }}
  workgroupBarrier();
  for (var pair = t; pair < {pairs}u; pair += {_WORKGROUP}u) {{
    plan[{order}u + atomicAdd(&counts[expert_of(pair)], 1u)] = pair;
  }}
}}"""
    bindings = [binding(0, "r", "choice", "u32"), binding(1, "w", "plan", "u32")]
    return Shader("\n".join([*bindings, code]), "rw")


def mix(columns: int, top_k: int, rows: int, *, shared: bool) -> tuple[Shader, tuple[int, int, int]]:
    """The weighted outputs of a row's experts, in the order of the choice, added
    to the row, and of the ``shared`` one, times the sigmoid of its gate. Bindings: choice; outputs float ``[rows,
    top_k, columns]``; x float ``[rows, columns]``; the shared expert's outputs ``[rows, columns]``."""
    words = choice_words(top_k)
    gate = f"bitcast<f32>(choice[wid.y * {words}u + {words - 1}u])"
    also = f"sum += of_shared[wid.y * {columns}u + c] / (1.0 + exp(-{gate}));" if shared else ""
    code = f"""@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let c = wid.x * {_WORKGROUP}u + t;
  if (c < {columns}u) {{
    var sum = 0.0;
    for (var k = 0u; k < {top_k}u; k++) {{
      let weight = bitcast<f32>(choice[wid.y * {words}u + {top_k}u + k]);
      sum = fma(weight, outputs[(wid.y * {top_k}u + k) * {columns}u + c], sum);
    }}
    {also}
    x[wid.y * {columns}u + c] += sum;
  }}
}}"""
    names = [("r", "choice", "u32"), ("r", "outputs", "f32"), ("w", "x", "f32")]
    names += [("r", "of_shared", "f32")] if shared else []
    bindings = [binding(i, *each) for i, each in enumerate(names)]
    shader = Shader("\n".join([*bindings, code]), "".join(kind for kind, _, _ in names))
    return shader, (-(-columns // _WORKGROUP), rows, 1)
