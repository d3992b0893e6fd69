"""`unlearn-serve`: the command line. Each command is a thin call into one package; errors are one line on stderr."""

import sys

import typer

from unlearn_serve import __version__
from unlearn_serve.cli import audit, evaluate, fuse, serving, status, store, train, trust
from unlearn_serve.cli.console import stderr
from unlearn_serve.errors import UnlearnServeError

app = typer.Typer(
    name="unlearn-serve",
    help="Deletion requests as unlearning layers, live on a running vLLM server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for module in (train, evaluate, fuse, store, trust, audit, serving, status):
    module.add_commands(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn deletion requests into releases, and serve them."""
    del version


def main() -> None:
    """Run the command line; exit 1 with one line on stderr for every error this package raises on purpose."""
    try:
        app()
    except UnlearnServeError as error:
        stderr.print(f"[bold red]error[/] ({type(error).__name__}):", end=" ")
        stderr.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
