"""The wgpu backend: decode steps as WGSL kernels on any GPU with Vulkan, Metal or D3D12. Experimental."""
