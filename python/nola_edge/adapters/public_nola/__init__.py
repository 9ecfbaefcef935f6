"""Checkpoints of the public NOLA code as adapters.

The public code is https://github.com/UCDvision/NOLA. It draws its random matrices again in every
forward from torch's global generator, so that a checkpoint of it means something only together with
the device that drew them. What it saves and computes, per kind of checkpoint, stands in
:mod:`~nola_edge.adapters.public_nola.llama`, :mod:`~nola_edge.adapters.public_nola.gpt2` and
:mod:`~nola_edge.adapters.public_nola.vision`; how torch draws, in
:mod:`~nola_edge.adapters.public_nola.cpu_generator` and
:mod:`~nola_edge.adapters.public_nola.cuda_generator`.
"""
