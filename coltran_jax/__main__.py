"""Command line: `coltran COMMAND`, the same as `python -m coltran_jax COMMAND`."""

import runpy
import sys

# Command -> module, and what it does.
COMMANDS = {
    "colorize": ("coltran_jax.cli.colorize", "colorize image files"),
    "convert": ("coltran_jax.cli.convert", "make a bundle from checkpoints of the published release"),
    "train": ("coltran_jax.cli.train", "train a network"),
    "evaluate": (
        "coltran_jax.cli.evaluate",
        "compare colorizations with the truth, or checkpoints with the holdout",
    ),
    "export": ("coltran_jax.cli.export", "make a bundle from training runs"),
    "study": ("coltran_jax.cli.study", "build the human test, and score its answers"),
}


def usage() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: coltran COMMAND [OPTIONS]", "", *lines, "", "coltran COMMAND --help tells its options."])


def main() -> int:
    """Runs a command; returns the exit status."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        print(f"error: no command {command!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    del sys.argv[1]
    runpy.run_module(COMMANDS[command][0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
