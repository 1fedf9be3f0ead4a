"""Real kernels under QEMU: boot, hibernate, dump, resume; see README.md in this folder."""
