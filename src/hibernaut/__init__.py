"""hibernaut: Linux x86-64 hibernation, on simulated machines, on dumps, on images of real kernels."""
