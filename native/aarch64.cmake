# Toolchain file: cross-compiles for aarch64 with Debian's g++-aarch64-linux-gnu, and runs what was built under qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu)

# Processors and the kernels that are to be chosen on them.
set(LLUDA_EMULATED max=neonbf16 neoverse-n1=neondot cortex-a72=portable)
