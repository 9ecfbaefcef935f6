"""Merging adapters into checkpoints: plan, then write, open lazily, or verify."""
