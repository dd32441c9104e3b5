"""The command line: parses, calls, prints. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.budget.serve import add_arguments as add_serve_arguments
from posttrain.errors import PosttrainError, Problem
from posttrain.run.eval_arguments import add_eval_arguments, whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 done, 2 bad input, 3 a gate missed, 130 stopped by the user."""
    root = parser()
    arguments, rest = root.parse_known_args(argv)
    if rest and arguments.command is not _serve:
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest, arguments.words = rest, sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("posttrain").setLevel(logging.WARNING if getattr(arguments, "quiet", False) else logging.INFO)
    try:
        return int(arguments.command(arguments) or 0)
    except PosttrainError as error:
        return _tell(error)
    except KeyboardInterrupt:
        print("posttrain: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        from posttrain.run.disk import full_disk

        problem = full_disk(error)
        if problem is None:
            raise  # a fault of ours
        return _tell(PosttrainError(problem))


def _tell(error: PosttrainError) -> int:
    count = len(error.problems)
    print(f"posttrain: {count} problem{'s' if count > 1 else ''}", file=sys.stderr)
    print(error, file=sys.stderr)
    return error.exit_code


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    root = argparse.ArgumentParser(
        prog="posttrain", description="Turn a base model into a Qwen3-style family: one recipe, stage by stage."
    )
    root.add_argument("--version", action="version", version=f"posttrain {__version__}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="validate a recipe in seconds and print the plan")
    _recipe_arguments(check)
    check.set_defaults(command=_check)

    run = commands.add_parser("run", help="run a recipe, or go on where it was stopped")
    _recipe_arguments(run)
    run.add_argument("--restart-from", metavar="STAGE", help="redo this stage and all after it")
    run.add_argument("--quiet", action="store_true", help="no progress bars, warnings only")
    run.set_defaults(command=_run)

    distill = commands.add_parser("distill", help="distil a student from a teacher: writes the recipe, and runs it")
    distill.add_argument("--teacher", required=True, help="a model directory, a hub id, or a server's URL")
    distill.add_argument("--teacher-model", metavar="NAME", help="its name on the server, if that has several")
    distill.add_argument("--student", required=True, help="a model directory or a hub id")
    distill.add_argument(
        "--data", required=True, action="append", help="a file of queries with answers, or a task's name; repeatable"
    )
    distill.add_argument("--verifier", help="what scores the answers of files; default: told from the answers")
    distill.add_argument("--family", help="the template family; default: the teacher's own, or qwen3")
    distill.add_argument("--max-new-tokens", type=whole(1), default=2048, help="of an answer; default: 2048")
    distill.add_argument("--output", type=Path, metavar="DIR", help="the run's directory; the recipe is DIR.yaml")
    distill.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, as in run")
    distill.add_argument("--only-write", action="store_true", help="write the recipe, check it, and do not run it")
    distill.add_argument("--quiet", action="store_true", help="no progress bars, warnings only")
    distill.set_defaults(command=_distill)

    report = commands.add_parser("report", help="write the report of a run, finished or not")
    report.add_argument("run", type=Path, help="a run's directory")
    report.set_defaults(command=_report)

    evaluate = commands.add_parser(
        "eval", help="score a model on a recipe's reserved queries, or models on suites, in every mode and budget"
    )
    _recipe_arguments(evaluate, needed=False)
    add_eval_arguments(evaluate)
    evaluate.set_defaults(command=_eval)

    chat = commands.add_parser("chat", help="talk to a model in the terminal, modes and budget switchable")
    chat.add_argument("model", type=Path, help="a model directory")
    chat.add_argument("--budget", type=whole(-1), default=-1, help="thinking budget in tokens; -1: no limit")
    chat.add_argument("--max-new-tokens", type=whole(1), default=1024)
    chat.set_defaults(command=_chat)

    serve = commands.add_parser("serve", help="serve a model with vLLM and a thinking budget", allow_abbrev=False)
    add_serve_arguments(serve)
    serve.set_defaults(command=_serve)

    data = commands.add_parser("data", help="look at what a stage trains on").add_subparsers(
        required=True, metavar="WHAT"
    )
    preview = data.add_parser("preview", help="rendered samples with the loss mask in colour, and the counts")
    _recipe_arguments(preview)
    preview.add_argument("--stage", required=True)
    preview.add_argument("--samples", type=whole(1), default=4)
    preview.set_defaults(command=_preview)
    _add_rewards(commands)
    return root


def _add_rewards(commands: Any) -> None:
    rewards = commands.add_parser("rewards", help="look at rewards without a run").add_subparsers(
        required=True, metavar="WHAT"
    )
    listed = rewards.add_parser("list", help="every reward and task, with options and what pays for it")
    listed.set_defaults(command=_rewards_list)
    probe = rewards.add_parser("probe", help="try rewards and tasks with gold answers, tricks and a search for hacks")
    probe.add_argument("names", nargs="*", metavar="NAME", help="tasks and rewards of form; default: all")
    probe.add_argument("--seed", type=int, default=0, help="of the problems and of the search")
    probe.add_argument("--no-search", action="store_true", help="gold answers and tricks alone")
    probe.add_argument("--judge", default="", metavar="YAML", help="a judge's options: try it on the tasks instead")
    probe.add_argument("--reward-model", type=Path, metavar="DIR", help="a reward model: try it on the tasks instead")
    probe.add_argument("--answers", type=int, help="that the search has a model score; default: 2000")
    probe.set_defaults(command=_rewards_probe)
    score = rewards.add_parser("score", help="score rows of a file, and say why")
    score.add_argument("file", type=Path, help="JSONL: task, prompt, completion, answer or fields, mode")
    score.add_argument("--rewards", default="by_task", help="as in a recipe, in YAML; default: by_task")
    score.add_argument("--family", default="qwen3", help="the template family of the completions")
    score.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    score.set_defaults(command=_rewards_score)


def _recipe_arguments(command: argparse.ArgumentParser, *, needed: bool = True) -> None:
    command.add_argument("recipe", type=Path, nargs=None if needed else "?", help="a recipe (YAML)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override; stages.NAME.train.learning_rate=1e-6"
    )
    command.add_argument("--output", type=Path, metavar="DIR", help="the run's directory; default: runs/NAME")


def _check(arguments: argparse.Namespace) -> None:
    from posttrain.recipe.load import load_recipe
    from posttrain.run.plan import print_plan

    loaded = load_recipe(arguments.recipe, arguments.set)
    print_plan(loaded, arguments.output or Path("runs") / loaded.recipe.name)


def _run(arguments: argparse.Namespace) -> None:
    from posttrain.recipe.load import load_recipe

    loaded = load_recipe(arguments.recipe, arguments.set)
    from posttrain.run.pipeline import run_recipe

    report = run_recipe(
        loaded,
        arguments.output or Path("runs") / loaded.recipe.name,
        restart_from=arguments.restart_from,
        quiet=arguments.quiet,
    )
    print(f"report: {report}")


def _distill(arguments: argparse.Namespace) -> None:
    from posttrain.recipe.load import load_recipe
    from posttrain.run.distill import Asked, write_distillation

    given = ("teacher", "student", "data", "output", "teacher_model", "family", "verifier", "max_new_tokens", "words")
    file, directory = write_distillation(Asked(**{key: getattr(arguments, key) for key in given}))
    print(f"recipe: {file}")
    loaded = load_recipe(file, arguments.set)
    if arguments.only_write:
        from posttrain.run.plan import print_plan

        print_plan(loaded, directory)
        return
    from posttrain.run.pipeline import run_recipe

    print(f"report: {run_recipe(loaded, directory, quiet=arguments.quiet)}")


def _report(arguments: argparse.Namespace) -> None:
    from posttrain.model.artifacts import RunDir
    from posttrain.report.build import build_report

    if not (arguments.run / "recipe.yaml").exists():
        raise PosttrainError(f"{arguments.run}: no run there (no recipe.yaml)")
    print(f"report: {build_report(RunDir(arguments.run))}")


def _eval(arguments: argparse.Namespace) -> None:
    loaded = None
    if arguments.recipe is not None:
        from posttrain.recipe.load import load_recipe

        loaded = load_recipe(arguments.recipe, arguments.set)
    if arguments.suite:
        from posttrain.run.suites import evaluate_as_asked

        evaluate_as_asked(arguments, loaded)
        return
    if loaded is None or arguments.endpoint is not None or len(arguments.model) != 1:
        why = "without --suite, one model is scored on a recipe's reserved queries"
        remedy = "name suites by --suite, or give a recipe and one --model"
        raise PosttrainError(Problem("there is nothing to score on", why=why, remedy=remedy))
    from posttrain.run.evaluate import evaluate_and_print

    evaluate_and_print(loaded, arguments.output, arguments.model[0], arguments.budget, quiet=arguments.quiet)


def _chat(arguments: argparse.Namespace) -> None:
    from posttrain.run.chat import chat

    chat(arguments.model, thinking_budget=arguments.budget, max_new_tokens=arguments.max_new_tokens)


def _serve(arguments: argparse.Namespace) -> None:
    from posttrain.budget.serve import serve
    from posttrain.run.model_directory import problems_of

    serve(arguments, arguments.rest, arguments.words, problems_of(Path(arguments.model).expanduser()))


def _rewards_list(arguments: argparse.Namespace) -> None:
    from posttrain.run.rewards import list_rewards

    list_rewards()


def _rewards_probe(arguments: argparse.Namespace) -> int:
    from posttrain.run.rewards import probe_rewards

    faulty = probe_rewards(
        arguments.names,
        seed=arguments.seed,
        hack=not arguments.no_search,
        judge=arguments.judge,
        reward_model=arguments.reward_model,
        answers=arguments.answers,
    )
    return int(faulty > 0)


def _rewards_score(arguments: argparse.Namespace) -> None:
    from posttrain.run.rewards import score_file

    score_file(arguments.file, rewards=arguments.rewards, family=arguments.family, output=arguments.output)


def _preview(arguments: argparse.Namespace) -> None:
    from posttrain.recipe.load import load_recipe

    loaded = load_recipe(arguments.recipe, arguments.set)
    from posttrain.run.preview import preview_stage

    preview_stage(loaded, arguments.output, arguments.stage, arguments.samples)


if __name__ == "__main__":
    raise SystemExit(main())
