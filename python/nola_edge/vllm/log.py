"""Where the plug-in logs."""

import logging

# Below "vllm", so that vLLM's own level, format and handlers apply.
LOGGER = logging.getLogger("vllm.nola_edge")
