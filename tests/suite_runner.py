"""Running a conformance suite as a test runner would."""


def methods_of(suite):
    """Return the names of its tests."""
    return [name for name in dir(suite) if name.startswith("test_")]


def failures(suite):
    """Return the names of the tests that failed."""
    failed = set()
    for name in methods_of(suite):
        try:
            getattr(suite, name)()
        except (AssertionError, ValueError):  # ours refuse codes out of range
            failed.add(name)
    return failed
