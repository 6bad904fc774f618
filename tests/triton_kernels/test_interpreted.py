"""Runs the tests of this folder's ``interpreted_*.py`` under Triton's interpreter.

The interpreter replaces compilation for a whole process, if TRITON_INTERPRET=1 is set
before triton is imported; so these tests have a process of their own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: pip install -e '.[test-gpu]'",
)


def run_interpreted(selection):
    files = sorted(str(path) for path in FOLDER.glob("interpreted_*.py"))
    assert files
    options = ["-q", "-p", "no:cacheprovider", "-m", selection, "--tb=short"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = f"{result.stdout}\n{result.stderr}"
    if result.returncode != 0:
        pytest.fail(f"under Triton's interpreter:\n{output}", pytrace=False)
    # No test may have been skipped: then nothing was compared.
    assert " passed" in output, output
    assert " skipped" not in output, output


def test_interpreted_kernels():
    run_interpreted("not slow")


@pytest.mark.slow
def test_interpreted_kernels_at_length():
    run_interpreted("slow")
