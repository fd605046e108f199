"""Intervals, tests, functionals and simultaneous bands."""
