"""What the wgpu backend supports."""

from lluda.backends.capabilities import Capabilities
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.q8_0 import Q8_0

CAPABILITIES = Capabilities(
    ("wgpu",), ("bf16",), ("auto", "bf16", "packed"), ("exact",), stored_formats=(PACKED_BF16.name, Q8_0.name)
)
