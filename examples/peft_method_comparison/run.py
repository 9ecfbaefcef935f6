"""Run NOLA in PEFT's method comparison, beside the methods that it knows.

PEFT compares its methods on one model and data set (MetaMathQA or image generation), by a script
that is in its repository and not in the package. It needs a GPU.

    NOLA=$PWD/examples/peft_method_comparison
    git clone https://github.com/huggingface/peft
    cd peft/method_comparison/MetaMathQA
    cp -r $NOLA/experiments/nola experiments/
    python $NOLA/run.py -v experiments/nola/llama-3.2-3B-rank32-quarter

That is their ``run.py`` with their arguments, after the one import that makes NOLA known to PEFT.
The result is written where theirs are, in the same form.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import nola_edge.peft  # noqa: F401 - makes PEFT know NOLA

THEIRS = Path("run.py")


def main() -> None:
    """Run the script of the folder that this is called in."""
    if not THEIRS.is_file():
        sys.exit(
            f"{THEIRS.resolve()} is not there: run this in method_comparison/MetaMathQA of a clone "
            "of PEFT's repository"
        )
    sys.path.insert(0, str(THEIRS.resolve().parent))  # of its own imports
    sys.argv[0] = str(THEIRS)
    runpy.run_path(str(THEIRS), run_name="__main__")


if __name__ == "__main__":
    main()
