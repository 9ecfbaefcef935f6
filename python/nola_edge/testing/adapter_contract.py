"""What an adapter of any method must hold."""

from __future__ import annotations

from nola_edge.testing.adapter_factors import FactorContract
from nola_edge.testing.adapter_merging import MergingContract
from nola_edge.testing.adapter_refusals import RefusalContract


class AdapterContract(FactorContract, MergingContract, RefusalContract):
    """Tests of a method: its factors, every verb, and what is refused.

    A subclass whose name begins with ``Test`` says `files`, `product`, `required_fields` and
    `bad_fields` (:class:`~nola_edge.testing.hooks.AdapterHooks`), and pytest runs the rest:

    - windows of factors are those of the whole, from any thread, in float32;
    - merging, ``--each``, opening, verifying and switching agree with a slow reference bit for bit,
      alone and together with a LoRA; so does the command line;
    - every tensor and field that is missing, unknown, not finite or of another form is refused in
      one printable line that names it, and nothing changes on disk.

    The method must be found by its ``peft_type``: it is one of nola-edge's own, or its package is
    installed.
    """
