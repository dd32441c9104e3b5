"""What several test files share: one finished run of every stage kind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from posttrain.evaluation.suites.data import offer_nltk

from . import warm

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

# How fast examples are drawn or run says how busy the machine is, and nothing about what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


# Files that take minutes begin first, the longest before all others: none of them is left over for one process alone.
LONG = (
    "test_engine", "test_pipeline", "test_budget_vllm", "test_serve_vllm", "test_rl_vllm", "test_engine_rollouts",
    "test_rl_preferences", "test_added_tokens", "test_rl_resume", "test_distill_vllm", "test_vllm",
    "test_tasks_reasoning_gym", "test_adapters", "test_games", "test_full_disk",
    "test_templates_render", "test_environment_verifiers",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def posttrain(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return warm.finish([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tests/recipes/chain.yaml, uninterrupted, one for all of pytest's workers. Do not change it: copy it."""
    root = tmp_path_factory.getbasetemp()
    directory = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "chain"
    with FileLock(directory.with_suffix(".lock")):
        if not (directory / "report.html").exists():
            done = posttrain("run", CHAIN, "--output", directory)
            assert done.returncode == 0, done.stderr
    return directory
