"""The next token of each row by its own settings: what `engine/sampling/sampler.py` does, in its order.

That computes in float64, which a GPU need not have. So sums here carry a bound of their errors, and where a border lies
within it (or too many scores tie) nothing is chosen and the host does, from the logits: every token is the sampler's.

A vocabulary is looked at in parts. The k-th largest of the parts' maxima is at most the k-th largest score, so that
only parts with a maximum as large can hold what top-k keeps.
"""

from __future__ import annotations

from lluda.backends.wgpu.wgsl.argmax import INFINITY_KEY, KEY, NAN_KEY
from lluda.backends.wgpu.wgsl.shader import Shader, binding

WIDTH = 12
"""Words of a row's settings: temperature, top_k (u32), top_p, min_p, repetition, presence, frequency, uniform number;
then u32: 1 + the row's table of occurrences, and of addends, 0 for none; what stands for the token that this step is
given."""

PARTS, PART_WIDTH = 256, 3
"""Of a row: a part's largest score and logit as keys, and the largest magnitude that scores were made of (float)."""

LEFT_TO_HOST = 0xFFFFFFFF
_WORKGROUP, _CANDIDATES = 256, 256

_SETTINGS = [
    f"let {name} = bitcast<f32>(settings[s0 + {index}u]);"
    for index, name in enumerate(
        ("temperature", "", "top_p", "min_p", "repetition", "presence", "frequency", "uniform_number")
    )
    if name
]


def scores(vocabulary: int) -> Shader:
    """For workgroups (PARTS, rows). Bindings: logits float ``[rows, vocabulary]``; ids u32 ``[rows]``, the tokens that
    this step is given; settings u32 ``[rows, WIDTH]``; occurrences u32 and addends float ``[tables, vocabulary]``;
    scored float ``[rows, vocabulary]``; found u32 ``[rows, PARTS, PART_WIDTH]``."""
    each = -(-vocabulary // PARTS)
    code = f"""var<workgroup> high: array<vec2<u32>, {_WORKGROUP}>; var<workgroup> large: array<f32, {_WORKGROUP}>;
@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let row = wid.y; let s0 = row * {WIDTH}u;
  {" ".join(line for line in _SETTINGS if "repetition" in line or "presence" in line or "frequency" in line)}
  let counted = settings[s0 + 8u]; let added = settings[s0 + 9u]; let fed = settings[s0 + 10u];
  var peak = vec2<u32>(0u); var magnitude = 0.0;
  let end = min((wid.x + 1u) * {each}u, {vocabulary}u);
  for (var i = wid.x * {each}u + t; i < end; i += {_WORKGROUP}u) {{
    let logit = logits[row * {vocabulary}u + i]; let raw = key_of(logit);
    var score = logit;
    if (counted > 0u) {{
      let place = (counted - 1u) * {vocabulary}u + i;
      var seen = occurrences[place];
      if (i == ids[row]) {{ seen = fed; occurrences[place] = fed; }}
      if (seen > 0u) {{
        let times = f32(seen >> 1u);
        var lower = logit / repetition;
        if (logit < 0.0) {{ lower = logit * repetition; }}
        score = lower - frequency * times;
        if (seen > 1u) {{ score -= presence; }}
      }}
      magnitude = max(magnitude, abs(logit) * max(repetition, 1.0 / repetition) + abs(score));
    }}
    if (added > 0u) {{
      let addend = addends[(added - 1u) * {vocabulary}u + i];
      score += addend;
      if (addend > -3.4e38) {{ magnitude = max(magnitude, abs(addend)); }}
    }}
    scored[row * {vocabulary}u + i] = score;
    peak = max(peak, vec2(key_of(score), raw));
  }}
  high[t] = peak; large[t] = magnitude; workgroupBarrier();
  for (var s = {_WORKGROUP // 2}u; s > 0u; s >>= 1u) {{
    if (t < s) {{ high[t] = max(high[t], high[t + s]); large[t] = max(large[t], large[t + s]); }}
    workgroupBarrier();
  }}
  if (t == 0u) {{
    let at = (row * {PARTS}u + wid.x) * {PART_WIDTH}u;
    found[at] = high[0].x; found[at + 1u] = high[0].y; found[at + 2u] = bitcast<u32>(large[0]);
  }}
}}"""
    names = [("r", "logits", "f32"), ("r", "ids", "u32"), ("r", "settings", "u32"), ("w", "occurrences", "u32")]
    names += [("r", "addends", "f32"), ("w", "scored", "f32"), ("w", "found", "u32")]
    return _shader(names, code)


def choose(vocabulary: int) -> Shader:
    """For workgroups (1, rows). Bindings: scored, found, settings as of `scores`; chosen (key of the largest score, or
    of a logit that is no number, and id or LEFT_TO_HOST) ``[rows]``; ids, for the next step."""
    each = -(-vocabulary // PARTS)
    code = f"""{_FLOAT_OF}
var<workgroup> peaks: array<u32, {PARTS}>; var<workgroup> logit_peaks: array<u32, {PARTS}>;
var<workgroup> large: array<f32, {PARTS}>; var<workgroup> least: array<u32, {PARTS}>;
var<workgroup> loose_id: array<u32, {_CANDIDATES}>; var<workgroup> loose: array<f32, {_CANDIDATES}>;
var<workgroup> id: array<u32, {_CANDIDATES}>; var<workgroup> mine_of: array<f32, {_CANDIDATES}>;
var<workgroup> weights: array<f32, {_CANDIDATES}>; var<workgroup> errors: array<f32, {_CANDIDATES}>;
var<workgroup> number: atomic<u32>; var<workgroup> unsure: atomic<u32>; var<workgroup> place: atomic<u32>;
@compute @workgroup_size({_WORKGROUP})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {{
  let row = wid.y; let s0 = row * {WIDTH}u; let top_k = settings[s0 + 1u];
  {" ".join(line for line in _SETTINGS if not any(n in line for n in ("repetition", "presence", "frequency")))}
  let at = (row * {PARTS}u + t) * {PART_WIDTH}u;
  let own = found[at];
  peaks[t] = own; logit_peaks[t] = found[at + 1u]; large[t] = bitcast<f32>(found[at + 2u]);
  mine_of[t] = 0.0;
  if (t == 0u) {{ atomicStore(&number, 0u); atomicStore(&unsure, 0u); atomicStore(&place, 0u); }}
  workgroupBarrier();
  // The least that top-k may keep, from the parts: equal ones count as one.
  var larger = 0u; var peak = 0u; var logit_peak = 0u; var magnitude = 0.0;
  for (var j = 0u; j < {PARTS}u; j++) {{
    larger += u32(peaks[j] > own); peak = max(peak, peaks[j]); logit_peak = max(logit_peak, logit_peaks[j]);
    magnitude = max(magnitude, large[j]);
  }}
  least[t] = select(0xffffffffu, own, larger < top_k);
  workgroupBarrier();
  var bound_key = 0xffffffffu;
  for (var j = 0u; j < {PARTS}u; j++) {{ bound_key = min(bound_key, least[j]); }}
  // How far a score may be off: penalties are not the host's to the last bit.
  let slack = select(0.0, magnitude * 0x1p-20f, settings[s0 + 8u] > 0u);
  let bound = float_of(bound_key) - slack;
  for (var j = 0u; j < {PARTS}u; j++) {{
    if (float_of(peaks[j]) < bound) {{ continue; }}
    let end = min((j + 1u) * {each}u, {vocabulary}u);
    for (var i = j * {each}u + t; i < end; i += {_WORKGROUP}u) {{
      let score = scored[row * {vocabulary}u + i];
      if (score >= bound && score > -3.4e38) {{
        let where_ = atomicAdd(&number, 1u);
        if (where_ < {_CANDIDATES}u) {{ loose_id[where_] = i; loose[where_] = score; }}
      }}
    }}
  }}
  workgroupBarrier();
  let seen = atomicLoad(&number); let count = min(seen, {_CANDIDATES}u);
  // In the order of their ids.
  if (t < count) {{
    var rank = 0u;
    for (var j = 0u; j < count; j++) {{ rank += u32(loose_id[j] < loose_id[t]); }}
    id[rank] = loose_id[t]; mine_of[rank] = loose[t];
  }}
  workgroupBarrier();
  let mine = mine_of[t]; var weight = 0.0; var error = 0.0; var doubt = seen > {_CANDIDATES}u;
  if (t < count) {{
    var surely = 0u; var perhaps = 0u;
    for (var j = 0u; j < count; j++) {{
      if (j != t) {{ surely += u32(mine_of[j] > mine + slack); perhaps += u32(mine_of[j] > mine - slack); }}
    }}
    if (slack == 0.0) {{ perhaps = surely; }}
    if (surely < top_k) {{
      let x = (float_of(peak) - mine) / temperature;
      weight = exp(-x);
      error = weight * (0x1p-21f * (1.0 + 2.0 * x) + 2.0 * slack / temperature);
      doubt = doubt || perhaps >= top_k;
    }}
  }}
  weights[t] = weight; errors[t] = error;
  workgroupBarrier();
  var total = 0.0; var slip = 0.0;
  for (var j = 0u; j < count; j++) {{ total += weights[j]; slip += errors[j]; }}
  slip += f32(count) * 0x1p-22f * total;
  if (top_p < 1.0 && weight > 0.0) {{
    let needed = top_p * total; var surely = 0.0; var perhaps = 0.0;
    for (var j = 0u; j < count; j++) {{
      let other = mine_of[j]; let ahead = other == mine && j < t;
      if (j != t && (other > mine + slack || (slack == 0.0 && ahead))) {{ surely += weights[j]; }}
      if (j != t && (other > mine - slack || ahead)) {{ perhaps += weights[j]; }}
    }}
    doubt = doubt || (surely - 2.0 * slip < needed && needed <= perhaps + 2.0 * slip && perhaps > 0.0);
    if (surely >= needed) {{ weight = 0.0; }}
  }}
  if (min_p > 0.0 && weight > 0.0) {{
    doubt = doubt || abs(weight - min_p) <= error + 0x1p-22f * min_p;
    if (weight < min_p) {{ weight = 0.0; }}
  }}
  workgroupBarrier();
  weights[t] = weight;
  workgroupBarrier();
  var reached = 0.0; total = 0.0;
  for (var j = 0u; j < count; j++) {{ total += weights[j]; if (j == t) {{ reached = total; }} }}
  let target_ = uniform_number * total;
  if (t < count) {{
    doubt = doubt || (reached > 0.0 && reached < total && abs(reached - target_) <= 2.0 * slip);
    doubt = doubt || (uniform_number > 0.0 && target_ >= total - 2.0 * slip);
    if (reached <= target_ && reached < total) {{ atomicAdd(&place, 1u); }}
  }}
  if (doubt) {{ atomicStore(&unsure, 1u); }}
  workgroupBarrier();
  if (t == 0u) {{
    var token = id[min(atomicLoad(&place), count - 1u)];
    if (atomicLoad(&unsure) > 0u || count == 0u) {{ token = {LEFT_TO_HOST}u; }}
    // A logit that is NaN or infinity is told; penalties could hide it.
    let told = select(peak, logit_peak, logit_peak >= {INFINITY_KEY}u);
    chosen[row] = vec2(told, token); ids[row] = token;
  }}
}}"""
    names = [("r", "scored", "f32"), ("r", "found", "u32"), ("r", "settings", "u32"), ("w", "chosen", "vec2<u32>")]
    return _shader([*names, ("w", "ids", "u32")], code)


_FLOAT_OF = f"""fn float_of(key: u32) -> f32 {{
  if (key >= {NAN_KEY}u) {{ return 3.4e38; }}
  if (key == 0u) {{ return -3.4e38; }}
  return clamp(bitcast<f32>(select(key & 0x7fffffffu, ~key, key < 0x80000000u)), -3.4e38, 3.4e38);
}}"""
"""The float of a key, within what can be computed with."""


def _shader(names: list[tuple[str, str, str]], code: str) -> Shader:
    bindings = [binding(index, kind, name, element) for index, (kind, name, element) in enumerate(names)]
    return Shader("\n".join([*bindings, KEY, code]), "".join(kind for kind, _, _ in names))
