"""The member of PEFT's enumeration of methods that stands for NOLA.

PEFT looks methods up by such a member and has no hook for others than its own. A ``str``
enumeration cannot be subclassed, but it can be given a member.
"""

from __future__ import annotations

from peft.utils import PeftType

from nola_edge.adapters.nola_config import PEFT_TYPE


def peft_type() -> PeftType:
    """Return ``PeftType.NOLA``, which is made on the first call.

    A PEFT that ships a method of that name has a member already; it is used.
    """
    if PEFT_TYPE not in PeftType.__members__:
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = PEFT_TYPE
        member._value_ = PEFT_TYPE
        member.__objclass__ = PeftType  # type: ignore[attr-defined]
        member._sort_order_ = len(PeftType.__members__)  # type: ignore[attr-defined]
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = member
        PeftType._value2member_map_[PEFT_TYPE] = member
    return PeftType[PEFT_TYPE]
