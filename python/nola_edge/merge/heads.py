"""Classification heads: as many rows as labels, which a configuration counts too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nola_edge.errors import FormatError
from nola_edge.merge.tied import base_config

if TYPE_CHECKING:
    from nola_edge.merge.plan import MergePlan

_HEAD = (
    r"(?:^|\.)(?:score|classifier|classification_head|qa_outputs|logits_proj)"
    r"(?:\.(?:out_proj|linear_out))?\.(?:weight|bias)"
)
#: What transformers takes where a configuration says nothing.
_DEFAULT_LABELS = 2


def is_head(name: str) -> bool:
    """Tell whether a tensor has a row for each label, by the names that transformers gives."""
    found = re.search(_HEAD, name)
    return found is not None and found.end() == len(name)


def label_notes(plan: MergePlan) -> tuple[str, ...]:
    """Say, one line each, which heads have other labels than the base's configuration counts.

    Loaders make a head of the configuration's size, into which the tensors do not fit.
    """
    heads = {
        name: values.shape[0]
        for name, values in {**plan.replaced, **plan.added}.items()
        if name.endswith(".weight") and is_head(name) and len(values.shape) == 2
    }
    try:
        config = base_config(plan.base) if heads else {}
    except FormatError:  # which loaders may read all the same
        return ()
    if not config:
        return ()
    names, count = config.get("id2label"), config.get("num_labels")
    if isinstance(names, dict):
        count = len(names)
    elif not isinstance(count, int):
        count = _DEFAULT_LABELS
    return tuple(
        f"{name} has {labels} labels, the base's config.json {count}: load the output with "
        f"from_pretrained(…, num_labels={labels}), or write id2label and label2id into its "
        "config.json"
        for name, labels in heads.items()
        if labels != count
    )
