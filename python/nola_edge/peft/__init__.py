"""NOLA in PEFT: import this module, and ``NolaConfig`` works wherever ``LoraConfig`` does.

    from nola_edge.peft import NolaConfig
    model = get_peft_model(model, NolaConfig(r=16, num_basis_a=128, num_basis_b=128, seed=42))

The import registers the method with PEFT. A program that only loads adapters needs it too;
otherwise PEFT does not know a method called NOLA (``KeyError: 'NOLA'``).
"""

from nola_edge.extras import explained

try:
    from nola_edge.peft.config import NolaConfig
    from nola_edge.peft.layer import NolaLinearLayer
    from nola_edge.peft.model import NolaModel
    from nola_edge.peft.register import register
    from nola_edge.peft.stored import stored_tensors
    from nola_edge.peft.trainer_callback import AlignStart
    from nola_edge.torch.aligned_start import align_start
except ModuleNotFoundError as error:
    raise explained(error, "nola_edge.peft", "peft") from None

register()

__all__ = [
    "AlignStart",
    "NolaConfig",
    "NolaLinearLayer",
    "NolaModel",
    "align_start",
    "stored_tensors",
]
