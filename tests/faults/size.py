"""Read how many hostile inputs a fault test tries.

What an input is, and what must hold of it, is left to each test.
"""

import os


def examples(default: int) -> int:
    """Return the number of inputs to try: ATTCL_FAULTS of the environment, otherwise `default`."""
    value = os.environ.get("ATTCL_FAULTS", "")
    return int(value) if value else default
