"""Kernels as WGSL text: one generator a family. Nothing here touches a device."""
