"""``introspect sae``: dictionaries (sparse autoencoders, transcoders) from files to pictures, one file a command."""

from __future__ import annotations

import importlib
import os
import pkgutil

import typer

app = typer.Typer(help="Train, measure, show and convert sparse autoencoders and transcoders.", no_args_is_help=True)

# The functions named `command` of the modules sae_*.py beside this one; what follows sae_ is the command's name.
for name in sorted(module.name for module in pkgutil.iter_modules([os.path.dirname(__file__)])):
    if name.startswith("sae_"):
        app.command(name=name.removeprefix("sae_"))(importlib.import_module(f".{name}", __package__).command)
