"""The parts of the extrapolation study: models, training over seeds, tables."""
