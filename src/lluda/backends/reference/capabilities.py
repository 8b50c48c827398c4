"""What the reference backend supports."""

from lluda.backends.capabilities import Capabilities
from lluda.formats.q8_0 import Q8_0

CAPABILITIES = Capabilities(
    (), ("bf16", "f32", "f64"), ("auto", "bf16", "blocked"), ("exact", "q8_0"), stored_formats=(Q8_0.name,)
)
