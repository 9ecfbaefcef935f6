"""Checkpoints of the public NOLA code, converted into exact LoRA adapters.

The public code is https://github.com/UCDvision/NOLA. It draws its basis anew in every forward from
torch's global generator, so that a checkpoint of it means something only together with the device
that drew the basis. What it saves and computes, per kind of checkpoint, stands in
:mod:`~nola_edge.convert.peft_style`, :mod:`~nola_edge.convert.gpt2_style` and
:mod:`~nola_edge.convert.vit_style`; how torch draws, in :mod:`~nola_edge.convert.cpu_generator`
and :mod:`~nola_edge.convert.cuda_generator`.
"""

from __future__ import annotations

from nola_edge.convert.convert import ConversionReport, convert_checkpoint

__all__ = ["ConversionReport", "convert_checkpoint"]
