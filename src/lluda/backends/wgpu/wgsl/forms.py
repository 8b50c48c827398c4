"""The forms in which a matrix lies on the device, and the text that multiplies with each.

A fragment is the run of columns that a thread takes at once. Loads are of 16 bytes: ``w: array<vec4<u32>>``. What a
form has beside that lies in ``side: array<u32>``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

Lines = list[str]


class Form(ABC):
    """``name`` and ``columns`` of a fragment, ``loads`` that bring it, and whether there is a ``side``."""

    name: str
    columns: int
    loads: int
    has_side = False

    @abstractmethod
    def row_vectors(self, columns: int) -> int:
        """16-byte vectors of a row."""

    @abstractmethod
    def load_at(self, fragment: str, load: int) -> str:
        """The vector of its row that a load of a fragment reads."""

    def x_at(self, fragment: str, vector: int) -> str:
        """The vec4 of x that is the fragment's ``vector``-th."""
        return f"{fragment} * {self.columns // 4}u + {vector}u"

    def prepare(self, b: int) -> Lines:  # noqa: ARG002
        """What all rows of the matrix share: from ``x0_b``, ``x1_b``, … of row b of x."""
        return []

    @abstractmethod
    def accumulate(self, r: int, batch: int, fragment: str, columns: int) -> Lines:
        """Add the products of a fragment of row r, whose loads are ``w_r_0``, …, to ``a_r_b``."""

    def finish(self, r: int, total_rows: str, group: int, x_values: Sequence[str]) -> Lines:  # noqa: ARG002
        """Behind the last fragment, of ``t_r_b``. ``x_values``: for each b a vec4 of x at ``column / 4u``."""
        return []


class Bf16(Form):
    """Rows of BF16: an even column is the lower half of a word."""

    name, columns, loads = "bf16", 8, 1

    def row_vectors(self, columns: int) -> int:
        return columns // 8

    def load_at(self, fragment: str, load: int) -> str:  # noqa: ARG002
        return fragment

    def prepare(self, b: int) -> Lines:
        return [f"let e_{b} = vec4(x0_{b}.xz, x1_{b}.xz); let o_{b} = vec4(x0_{b}.yw, x1_{b}.yw);"]

    def accumulate(self, r: int, batch: int, fragment: str, columns: int) -> Lines:  # noqa: ARG002
        return [
            f"let lo_{r} = bitcast<vec4<f32>>(w_{r}_0 << vec4(16u));",
            f"let hi_{r} = bitcast<vec4<f32>>(w_{r}_0 & vec4(0xffff0000u));",
            *(f"a_{r}_{b} = fma(hi_{r}, o_{b}, fma(lo_{r}, e_{b}, a_{r}_{b}));" for b in range(batch)),
        ]


class F32(Form):
    """Rows of float32."""

    name, columns, loads = "f32", 4, 1

    def row_vectors(self, columns: int) -> int:
        return columns // 4

    def load_at(self, fragment: str, load: int) -> str:  # noqa: ARG002
        return fragment

    def accumulate(self, r: int, batch: int, fragment: str, columns: int) -> Lines:  # noqa: ARG002
        return [f"a_{r}_{b} = fma(bitcast<vec4<f32>>(w_{r}_0), x0_{b}, a_{r}_{b});" for b in range(batch)]


class Packed(Form):
    """Packed BF16: blocks of 128 weights in 192 bytes (docs/formats.md), but codes are ``exponent - offset``, 0 for
    zeros and escapes, so that a shift makes an exponent of a code. ``side``: 2^(offset - 64) as float32, the first
    escape of each row and of the end, then column and bits of each escape. x is lifted by 2^64 for the products.

    A thread takes a quarter of a block: signs and mantissas of both halves, and their codes."""

    name, columns, loads, has_side = "packed", 32, 3, True

    def row_vectors(self, columns: int) -> int:
        return columns // 128 * 12

    def load_at(self, fragment: str, load: int) -> str:
        return f"{fragment} / 4u * 12u + {fragment} % 4u + {load * 4}u"

    def x_at(self, fragment: str, vector: int) -> str:
        half, part = divmod(vector, 4)
        return f"{fragment} / 4u * 32u + {fragment} % 4u * 2u + {half * 16 + part // 2 * 8 + part % 2}u"

    def prepare(self, b: int) -> Lines:
        return [
            f"let p{half}{j}_{b} = vec4({', '.join(f'x{half * 4 + m}_{b}.{axis}' for m in range(4))}) * 0x1p64f;"
            for half in range(2)
            for j, axis in enumerate("xyzw")
        ]

    def accumulate(self, r: int, batch: int, fragment: str, columns: int) -> Lines:  # noqa: ARG002
        lines = []
        for half in range(2):
            for j in range(4):
                shift = (23 if half == 0 else 19) - 8 * j
                code = f"(w_{r}_2 << vec4({shift}u))" if shift >= 0 else f"(w_{r}_2 >> vec4({-shift}u))"
                kept = f"bitcast<vec4<u32>>(bitcast<vec4<i32>>(w_{r}_{half} << vec4({24 - 8 * j}u)) >> vec4(8u))"
                lines.append(
                    f"let d_{r}_{half}{j} = bitcast<vec4<f32>>(({kept} & vec4(0x807f0000u)) | "
                    f"({code} & vec4(0x07800000u)));"
                )
                lines += [f"a_{r}_{b} = fma(d_{r}_{half}{j}, p{half}{j}_{b}, a_{r}_{b});" for b in range(batch)]
        return lines

    def finish(self, r: int, total_rows: str, group: int, x_values: Sequence[str]) -> Lines:
        lines = [f"t_{r}_{b} *= bitcast<f32>(side[0]);" for b in range(len(x_values))]
        lines += [
            f"for (var e = side[1u + row_{r}] + l; e < side[2u + row_{r}]; e += {group}u) {{",
            f"let column = side[2u + {total_rows} + 2u * e];",
            f"let value = bitcast<f32>(side[3u + {total_rows} + 2u * e] << 16u);",
        ]
        lines += [
            f"let escaped_{b} = {value}; t_{r}_{b} += value * escaped_{b}[column % 4u];"
            for b, value in enumerate(x_values)
        ]
        return [*lines, "}"]


class Q8(Form):
    """Q8_0 with numbers and scales apart: int8 rows, and in ``side`` a float16 for each 32 columns."""

    name, columns, loads, has_side = "q8_0", 32, 2, True

    def row_vectors(self, columns: int) -> int:
        return columns // 16

    def load_at(self, fragment: str, load: int) -> str:
        return f"{fragment} * 2u + {load}u"

    def accumulate(self, r: int, batch: int, fragment: str, columns: int) -> Lines:
        lines = [f"let g_{r} = row_{r} * {columns // 32}u + {fragment}; let d_{r} = half_at(g_{r});"]
        lines += [f"var s_{r}_{b} = vec4<f32>(0.0);" for b in range(batch)]
        # Conversions of integers take a GPU several times as long as these: a byte of 2^23 + 128 + number is a float.
        lines += [f"let u_{r}_{load} = w_{r}_{load} ^ vec4(0x80808080u);" for load in range(self.loads)]
        for k in range(8):
            lines.append(
                f"let v_{r}_{k} = bitcast<vec4<f32>>(((vec4(u_{r}_{k // 4}.{'xyzw'[k % 4]}) >> vec4(0u, 8u, 16u, 24u)) "
                f"& vec4(0xffu)) | vec4(0x4b000000u)) - vec4(8388736.0);"
            )
            lines += [f"s_{r}_{b} = fma(v_{r}_{k}, x{k}_{b}, s_{r}_{b});" for b in range(batch)]
        return lines + [f"a_{r}_{b} = fma(vec4(d_{r}), s_{r}_{b}, a_{r}_{b});" for b in range(batch)]


HALF_AT = """fn half_at(index: u32) -> f32 {
  let h = (side[index / 2u] >> (index % 2u * 16u)) & 0xffffu;
  let magnitude = h & 0x7fffu;
  if (magnitude < 0x400u) { return select(1.0, -1.0, (h >> 15u) == 1u) * f32(magnitude) * 0x1p-24f; }
  let exponent = select(magnitude + 0x1c000u, 0x3fc00u | (magnitude & 0x3ffu), magnitude >= 0x7c00u);
  return bitcast<f32>(((h >> 15u) << 31u) | (exponent << 13u));
}"""
"""The ``index``-th float16 of ``side``, by integers: whether ``unpack2x16float`` keeps subnormal ones is the driver's
choice. Declared where a Q8_0 matrix is bound."""

FORMS: dict[str, Form] = {form.name: form for form in (Bf16(), F32(), Packed(), Q8())}
