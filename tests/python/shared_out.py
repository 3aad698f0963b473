"""What tests of work that is shared out among workers have in common."""

import introspect

OURS = ("tiles", "pairs")
"""Ways of products in bfloat16 that give a reading the same bits whatever it shares a pass with."""


def tasks(*given):
    """Tasks of a pool, each with these arguments."""
    return [lambda task=task: task for task in given]


def has_same_bits(dtype: str) -> bool:
    """Whether a reading of a CPU has the same bits whatever it shares a pass with."""
    return dtype == "float32" or (dtype == "bfloat16" and introspect.ops.bfloat16_products() in OURS)
