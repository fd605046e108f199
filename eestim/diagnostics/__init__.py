"""Checks of a fit: what each row does to it, and whether its assumptions hold."""

from eestim.diagnostics.influence import influence_measures

__all__ = ["influence_measures"]
