"""Where data lies: files and folders on this machine, or a name that `datasets` knows. The two are never confused."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".parquet")
OPTIONS = {"name", "data_dir", "data_files", "revision"}  # of datasets.load_dataset
_SAVED = ("dataset_dict.json", "state.json")


LOCAL_ENDINGS = (*SUFFIXES, ".gguf", ".safetensors", ".bin", ".csv", ".txt")


def looks_local(name: str, folder: Path | None = None) -> bool:
    """Whether the name of a model, tokenizer or data set means a file or folder here: such a name never goes to a hub.

    A hub id is one word or `owner/name`. Anything else is a path; so is, with a `folder` that relative names begin at,
    what exists there, and `owner/name` where `owner` is a folder there.
    """
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or name.endswith(LOCAL_ENDINGS):
        return True
    if folder is None:
        return False
    try:
        return (folder / name).exists() or ("/" in name and (folder / name.partition("/")[0]).is_dir())
    except OSError:  # too long for a file's name: no hub has it either, and says so
        return False


def resolve(path: str, base_dir: Path) -> list[Path] | Path:
    """The files that a path, folder or glob means, sorted; or the folder itself where `datasets` has saved it.

    Args:
        base_dir: where a relative path begins. `~` is the home folder.

    Raises:
        PosttrainError: nothing is there, or nothing that can be read.
    """
    full = base_dir / Path(path).expanduser()
    if full.is_file():
        files = [full]
    elif full.is_dir():
        if any((full / name).is_file() for name in _SAVED):
            return full
        files = [file for file in sorted(full.rglob("*")) if _is_data(file, full)]
        if not files:
            raise PosttrainError(Problem(f"no file in it ends in {', '.join(SUFFIXES)}", str(full)))
    else:
        files = [Path(file) for file in sorted(glob.glob(str(full), recursive=True)) if Path(file).is_file()]
        if not files:
            raise PosttrainError(_missing(full))
    if unknown := [file for file in files if file.suffix not in SUFFIXES]:
        remedy = f"data files end in {', '.join(SUFFIXES)}"
        raise PosttrainError(
            Problem(f"cannot tell what kind of file this is: {file.name}", str(file), remedy=remedy) for file in unknown
        )
    return files


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    return file.is_file() and file.suffix in SUFFIXES and not hidden


def _missing(path: Path) -> Problem:
    if glob.has_magic(str(path)):
        return Problem("no file matches", str(path))
    there = next(parent for parent in path.parents if parent.is_dir())
    if there != path.parent:
        return Problem("no such file or folder", str(path), remedy=f"there is no folder {path.parent}")
    near = difflib.get_close_matches(path.name, [entry.name for entry in there.iterdir()], n=3)
    return Problem("no such file or folder", str(path), remedy=f"did you mean {' or '.join(near)}?" if near else "")


def open_saved(folder: Path, split: str) -> Dataset:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written."""
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(folder))
        return saved if isinstance(saved, Dataset) else saved[split]
    except KeyError:
        raise PosttrainError(Problem(f"no split {split!r}; there are {', '.join(saved)}", str(folder))) from None
    except Exception as error:
        raise PosttrainError(Problem(f"no sound data set of `datasets`: {_first_line(error)}", str(folder))) from error


def open_named(name: str, split: str, options: Mapping[str, Any]) -> Dataset:
    """A data set by a name that `datasets.load_dataset` knows."""
    import datasets

    if unknown := set(options) - OPTIONS:
        what = f"options of a `datasets` name are {', '.join(sorted(OPTIONS))}, not {', '.join(sorted(unknown))}"
        raise PosttrainError(Problem(what))
    try:
        return datasets.load_dataset(name, split=split, **options)
    except Exception as error:
        remedy = "check the name, the split and the network; a local file is given by `path`"
        what = f"cannot open data set {name!r}, split {split!r}: {_first_line(error)}"
        raise PosttrainError(Problem(what, remedy=remedy)) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
