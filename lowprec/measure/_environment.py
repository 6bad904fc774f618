"""What a reader needs to repeat a run."""

from __future__ import annotations

import platform

import torch

from .._version import __version__


def environment() -> dict[str, str]:
    """Return the versions of lowprec, torch and Python, and the platform.

    Returns:
        Text by name, for example for a configuration file.

    Example:
        >>> list(environment())
        ['lowprec', 'torch', 'python', 'platform']
    """
    return {
        "lowprec": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
