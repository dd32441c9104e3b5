"""`accelerate launch` as a process of ours (`python -m posttrain.run.launcher`, its options are accelerate's own).

It adds two things: the workers die with the run, and a failed worker is told in one line, not in the launcher's own
stack trace.
"""

from __future__ import annotations

import logging
import subprocess
import sys

from posttrain.run.lifetime import die_with_parent


def main() -> int:
    """Launch, and return the exit code: 0, or 1 where a worker failed."""
    die_with_parent()
    # Their accounts of a failure are stack traces of the launcher; ours is below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").setLevel(logging.CRITICAL)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args())
    except ChildFailedError as error:
        for rank, failure in sorted(error.failures.items()):
            print(f"process {rank} ended with exit code {failure.exitcode}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:  # one process, started without torch's launcher
        print(f"the process ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
