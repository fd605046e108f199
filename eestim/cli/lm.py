"""The commands ``eestim lm``: fit, evaluate, infer and report of a language model."""

import typer

__all__ = ["lm"]

lm = typer.Typer(help="Latent-prefix language models.", no_args_is_help=True)
