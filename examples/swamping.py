"""How far does a sum of ones get in 8, 11 and 24 bits, and by which order?

In precision p the number 2^p has spacing 2: adding 1 is a tie, goes to the even
neighbour, and the sum stops. Blocked and pairwise summation add numbers of equal size.
"""

import torch

import lowprec

TERMS = 4096
ORDERS = {
    "sequential": {"order": "sequential"},
    "blocked by 64": {"order": "blocked", "block_size": 64},
    "pairwise": {"order": "pairwise"},
}


def main() -> None:
    """Print one line for each format."""
    ones = torch.ones(TERMS)
    print(f"sum of {TERMS} ones".ljust(20), *(name.rjust(14) for name in ORDERS))
    for name in ("bfloat16", "binary16", "binary32"):
        rounding = lowprec.Rounding(lowprec.format(name))
        sums = [
            lowprec.dot(ones, ones, accumulator=lowprec.Accumulator(rounding, **order))
            for order in ORDERS.values()
        ]
        print(name.ljust(20), *(f"{float(value):14g}" for value in sums))


if __name__ == "__main__":
    main()
