"""`import lowprec` costs a user no more than torch and numpy."""

import subprocess
import sys

import pytest

import lowprec

OPTIONAL = {
    "gmpy2",
    "hypothesis",
    "jinja2",
    "matplotlib",
    "ml_dtypes",
    "pandas",
    "pytest",
    "scipy",
    "sklearn",
    "sympy",
    "tqdm",
    "triton",
}


def modules_after(statement):
    """Names of the top-level modules that a fresh interpreter holds afterwards."""
    program = f"""\
import sys
{statement}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    # -P: the installed package, not what happens to lie in the working directory.
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.fixture(scope="module")
def loaded_by_torch():
    return modules_after("import numpy, torch")


def test_import_loads_no_optional_package(loaded_by_torch):
    loaded = modules_after("import lowprec") - loaded_by_torch
    assert "lowprec" in loaded
    assert loaded & OPTIONAL == set()


def test_every_public_name_exists():
    names = [name for name in dir(lowprec) if not hasattr(lowprec, name)]
    assert names == []
    assert not hasattr(lowprec, "no_such_name")


def test_emulation_loads_on_first_use():
    # Its tables of operations cost more than all the rest of the import.
    program = """\
import sys, lowprec
assert "lowprec._operations" not in sys.modules
assert "lowprec.functional" not in sys.modules
with lowprec.emulate(lowprec.Precision()):
    pass
assert isinstance(lowprec.emulate, type) and "lowprec._operations" in sys.modules
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
