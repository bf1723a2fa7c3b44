"""Command line: trains on a TPU slice of a GKE cluster; what follows -- goes to `python -m coltran_jax train`."""

import argparse
import shutil
import subprocess
import sys

from coltran_jax.cli.shared import failing_in_one_line, parser_for
from coltran_jax.errors import UsageError
from launch.gke import OPTIONS, manifest


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.gke", __doc__)
    add = parser.add_argument
    add("--name", required=True, help="of the run; its folder is BUCKET/NAME")
    add("--image", required=True, help="made from launch/gke/Dockerfile")
    add("--topology", required=True, help="such as v5e:4x4")
    add("--bucket", required=True, help="of Cloud Storage, with a hierarchical namespace; /mnt/bucket in the run")
    for key in ("namespace", "service_account", "restarts", "slices"):
        add(f"--{key}", default=OPTIONS[key], help=f"({OPTIONS[key]})")
    add("--dry_run", action="store_true", help="show the manifest and apply nothing")
    add("flags", nargs="+", metavar="-- FLAG", help="of train")
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Applies the manifest; returns the exit status."""
    args = parse_args(argv)
    if any(flag.startswith("--workdir") for flag in args.flags):
        raise UsageError("--workdir is set from --bucket and --name")
    command = ["python", "-m", "coltran_jax", "train", *args.flags, f"--workdir=/mnt/bucket/{args.name}"]
    text = manifest(args.name, command, {key: getattr(args, key) for key in OPTIONS})
    if args.dry_run:
        print(text, end="")
        return 0
    if shutil.which("kubectl") is None:
        raise UsageError("kubectl is not on this machine")
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode


if __name__ == "__main__":
    sys.exit(main())
