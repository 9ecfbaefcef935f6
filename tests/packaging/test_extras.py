"""Parts that need torch or PEFT, imported where these are not installed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

IMPORT = """
import sys
for name in sys.argv[2].split():
    sys.modules[name] = None
__import__(sys.argv[1])
"""
ALL = "torch peft transformers"


@pytest.mark.parametrize(
    ("module", "hidden", "part", "extra"),
    [
        ("nola_edge.torch", ALL, "nola_edge.torch", "torch"),
        ("nola_edge.torch.linear", ALL, "nola_edge.torch", "torch"),
        ("nola_edge.peft", ALL, "nola_edge.peft", "peft"),
        ("nola_edge.peft", "peft", "nola_edge.peft", "peft"),
        ("nola_edge.transformers", ALL, "nola_edge.transformers", "peft"),
        ("nola_edge.testing", "pytest", "nola_edge.testing", "test"),
        ("nola_edge.testing", "hypothesis", "nola_edge.testing", "test"),
    ],
)
def test_what_to_install_is_said_in_one_line(module, hidden, part, extra):
    command = [sys.executable, "-c", IMPORT, module, hidden]
    ran = subprocess.run(command, capture_output=True, text=True)
    named = hidden.replace(" ", "|")
    line = rf"ImportError: {part} needs ({named}): pip install 'nola-edge\[{extra}\]'"
    assert re.fullmatch(line, ran.stderr.splitlines()[-1])
    assert ran.returncode == 1
