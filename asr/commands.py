"""Commands that fail in one line, whatever it is that went wrong."""

from typing import Any

import typer
from typer.core import TyperGroup

from asr.errors import AsrError


class Commands(TyperGroup):
    """Commands whose failures are one line on stderr and an exit status, never a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order that help shows them: `prepare`, a group, comes first."""
        return sorted(
            super().list_commands(ctx),
            key=lambda name: not isinstance(self.commands[name], TyperGroup),
        )

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except AsrError as error:
            complain(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("asr: interrupted", err=True)
            raise typer.Exit(130) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            advice = "train.max_frames in the recipe makes batches smaller; or try --device cpu"
            complain(f"the GPU's memory is too small: {str(error).splitlines()[0]}; {advice}")
            raise typer.Exit(1) from None
        except BrokenPipeError:
            raise  # typer ends quietly when nobody reads any more
        except OSError as error:
            complain(f"{error.filename}: {error.strerror}" if error.filename else error)
            raise typer.Exit(1) from None


def complain(error: object) -> None:
    """A line on stderr."""
    text = str(error).replace("\n", "\\n")  # a file's name may have any
    typer.echo(f"asr: error: {text}", err=True)
