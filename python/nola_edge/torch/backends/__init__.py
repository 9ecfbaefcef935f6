"""Kernels of the operators, by kind of device."""
