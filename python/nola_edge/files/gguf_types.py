"""The types of GGUF: of tensors (ggml's) and of metadata values.

Source: ``ggml.h``, ``ggml-common.h`` and the GGUF specification of the ggml project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """A type of ggml: rows are cut into blocks, each of which takes the same number of bytes.

    Attributes
    ----------
    code : int
        Its number in a file.
    block : int
        Elements of a block.
    nbytes : int
        Bytes of a block.
    """

    code: int
    block: int
    nbytes: int


TENSOR_TYPES = {
    "F32": TensorType(0, 1, 4),
    "F16": TensorType(1, 1, 2),
    "Q4_0": TensorType(2, 32, 18),
    "Q4_1": TensorType(3, 32, 20),
    "Q5_0": TensorType(6, 32, 22),
    "Q5_1": TensorType(7, 32, 24),
    "Q8_0": TensorType(8, 32, 34),
    "Q8_1": TensorType(9, 32, 40),
    "Q2_K": TensorType(10, 256, 84),
    "Q3_K": TensorType(11, 256, 110),
    "Q4_K": TensorType(12, 256, 144),
    "Q5_K": TensorType(13, 256, 176),
    "Q6_K": TensorType(14, 256, 210),
    "Q8_K": TensorType(15, 256, 292),
    "IQ2_XXS": TensorType(16, 256, 66),
    "IQ2_XS": TensorType(17, 256, 74),
    "IQ3_XXS": TensorType(18, 256, 98),
    "IQ1_S": TensorType(19, 256, 50),
    "IQ4_NL": TensorType(20, 32, 18),
    "IQ3_S": TensorType(21, 256, 110),
    "IQ2_S": TensorType(22, 256, 82),
    "IQ4_XS": TensorType(23, 256, 136),
    "I8": TensorType(24, 1, 1),
    "I16": TensorType(25, 1, 2),
    "I32": TensorType(26, 1, 4),
    "I64": TensorType(27, 1, 8),
    "F64": TensorType(28, 1, 8),
    "IQ1_M": TensorType(29, 256, 56),
    "BF16": TensorType(30, 1, 2),
    "TQ1_0": TensorType(34, 256, 54),
    "TQ2_0": TensorType(35, 256, 66),
    "MXFP4": TensorType(39, 32, 17),
    "NVFP4": TensorType(40, 64, 36),
    "Q1_0": TensorType(41, 128, 18),
}
TENSOR_TYPE_NAMES = {kind.code: name for name, kind in TENSOR_TYPES.items()}

#: Float types: merged in place, with one rounding.
FLOAT_TYPES = ("F32", "F16", "BF16")
#: Quantised types that can be written anew with results as ggml's own.
REQUANTIZED_TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")

#: ``struct`` format of the fixed-size metadata types, by their number in a file.
VALUE_FORMATS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9
