"""GGUF: read and check files, merge into them, write LoRA adapters for llama.cpp and Ollama."""

from nola_edge.gguf.merge import GgufReport, merge_gguf

__all__ = ["GgufReport", "merge_gguf"]
