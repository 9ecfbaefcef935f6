"""Checkpoints of the public NOLA code as adapters.

The public code is https://github.com/UCDvision/NOLA. It draws its random matrices again in every
forward from torch's global generator, so that a checkpoint of it means something only together with
the device that drew them. What it saves and computes, per kind of checkpoint, stands in ``llama``,
``gpt2`` and ``vision``; how torch draws, in ``cpu_generator`` and ``cuda_generator``.
"""
