"""transformers' Trainer aligns the start of a fresh adapter with the first gradient."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nola_edge.torch.aligned_start import align_start


class AlignStart(TrainerCallback):
    """Call :func:`nola_edge.torch.align_start` when a Trainer, of transformers or TRL, begins.

        Trainer(model, ..., callbacks=[AlignStart()])

    It looks at the first batches that training would see; training then sees them again, in the
    order that it would have had. A run that resumes from a checkpoint keeps its start.

    Parameters
    ----------
    num_batches : int
        Of each process, at most.
    **options
        See :func:`nola_edge.torch.align_start`.
    """

    def __init__(self, num_batches: int = 8, **options: Any) -> None:
        self._num_batches, self._options = num_batches, options

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Align, unless the run has been begun before."""
        if state.global_step > 0:
            return
        loader = kwargs["train_dataloader"]
        # Accelerate's own one takes note of who iterates it, and expects to be read to its end.
        loader = getattr(loader, "base_dataloader", loader)
        with torch.random.fork_rng():
            batches = list(islice(loader, self._num_batches))
        options = {"progress": not args.disable_tqdm, **self._options}
        align_start(kwargs["model"], batches, num_batches=self._num_batches, **options)
