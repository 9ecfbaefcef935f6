"""An obvious, slow implementation of docs/basis-v1.md: the judge of every fast one."""
