"""Draw the remoteness psi of a quantization set and the velocity of a weight.

.venv/bin/python examples/remoteness.py docs/figures/remoteness.png
"""

from __future__ import annotations

import sys

import torch

import lowprec as lp
from lowprec.optim import feasible_set, remoteness, skewed_direction

LEVELS = lp.Levels.int_bits(2)
EPSILON, ALPHA, GRADIENT = 0.04, 0.5, 0.4


def main(path: str) -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    w = torch.linspace(-2.6, 1.6, 2001, dtype=torch.float64)
    figure, axes = plt.subplots(2, 1, sharex=True, figsize=(7, 5), dpi=90)
    for kind in ("quadratic", "quartic", "quartic_ext"):
        psi = remoteness(w, LEVELS, EPSILON, kind).value
        axes[0].plot(w, psi, label=kind)
    axes[0].axhline(0, color="black", linewidth=0.5)
    axes[0].set_ylim(-0.5, 0.15)
    axes[0].set_ylabel("psi")
    axes[0].legend(loc="lower right")
    for sign in (1, -1):
        direction = skewed_direction(
            torch.full_like(w, sign * GRADIENT),
            w,
            LEVELS,
            EPSILON,
            alpha=ALPHA,
            clip=1.0,
        )
        axes[1].plot(w, -direction, label=f"gradient {sign * GRADIENT:+}")
    axes[1].set_ylabel("velocity")
    axes[1].set_xlabel("weight, in units of the levels")
    axes[1].legend(loc="lower right")
    for low, high in feasible_set(LEVELS, EPSILON):
        for ax in axes:
            ax.axvspan(low, high, color="grey", alpha=0.2)
    figure.tight_layout()
    figure.savefig(path)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "remoteness.png")
