"""GGUF: read and check files, merge into them and verify that."""

from nola_edge.gguf.merge import GgufReport, merge_gguf
from nola_edge.gguf.verify import verify_gguf

__all__ = ["GgufReport", "merge_gguf", "verify_gguf"]
