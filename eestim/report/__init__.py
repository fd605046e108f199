"""Tables, plots and self-contained HTML."""

__all__: list[str] = []
