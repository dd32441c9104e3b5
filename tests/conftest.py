"""What several test files share: one finished run of every stage kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.evaluation.suites.data import offer_nltk

CHAIN = Path(__file__).parent / "recipes" / "chain.yaml"

# Tests run side by side: one thread each, none of them spinning, and never a hub.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(ENVIRONMENT)
offer_nltk()  # before any process of checkers starts


def posttrain(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "posttrain", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tests/recipes/chain.yaml, uninterrupted. Do not change it: copy it."""
    directory = tmp_path_factory.mktemp("chain") / "run"
    done = posttrain("run", CHAIN, "--output", directory)
    assert done.returncode == 0, done.stderr
    return directory
