"""Command line: `coltran COMMAND`, the same as `python -m coltran_jax COMMAND`."""

import importlib
import sys

from coltran_jax.cli.shared import use_huge_pages

# Command -> what it does; each is a module of `coltran_jax.cli` with a `main`.
COMMANDS = {
    "colorize": "colorize image files",
    "merge": "make one manifest of those of several processes",
    "convert": "make a bundle from checkpoints of the published release",
    "train": "train a network",
    "evaluate": "compare colorizations with true images, or checkpoints with the held-out set",
    "export": "make a bundle from training runs",
    "demo": "a page in the browser: photographs, known colours, samples",
    "study": "build the human test, and score its answers",
}


def usage() -> str:
    """Returns the list of commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: coltran COMMAND [OPTIONS]", "", *lines, "", "coltran COMMAND --help lists its options."])


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    command, options = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        print(f"error: no command {command!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    use_huge_pages()
    return importlib.import_module(f"coltran_jax.cli.{command}").main(options)


if __name__ == "__main__":
    sys.exit(main())
