"""The four tolerances of the test suite, each with its reason."""

EXACT = 1e-12  # one formula by two routes: rounding of a few operations
REFERENCE = 1e-8  # another package's digits, printed to about 1e-10 and iterated
DERIVATIVE = 1e-6  # central differences: truncation h**2 and rounding eps / h


def float32_sum(length: int) -> float:
    """Bound the relative rounding error of a float32 sum of ``length`` terms."""
    return 1.2e-7 * max(length, 1)
