"""The root directory of the sandbox: the interpreter, its standard library, the shared libraries they need, the judge.

Nothing else of the machine is in it, so nothing else can be read. It is made once a machine and interpreter, with the
filter of system calls beside it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import is_complete, seal
from posttrain.sandbox import seccomp

JUDGE = Path(__file__).with_name("judge")
PREFIX = "python"  # where the interpreter lies in the root
DEVICES = ("null", "zero", "random", "urandom")
LEFT_OUT = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo"),
    *("pydoc_data", "idle_test", "venv", "distutils"),
}


def interpreter() -> str:
    """The path of the interpreter inside the root."""
    return f"/{PREFIX}/bin/python{_version()}"


def prepared() -> Path:
    """The directory with `root` and `seccomp.bpf`, made if it is not there yet.

    Raises:
        PosttrainError: the shared libraries or system calls are not known, or the directory is not ours.
    """
    home = Path(tempfile.gettempdir()) / f"posttrain-sandbox-{os.geteuid()}"
    home.mkdir(mode=0o755, exist_ok=True)
    owner = home.stat()
    if home.is_symlink() or owner.st_uid != os.geteuid() or owner.st_mode & 0o022:
        why = "what runs in the sandbox is taken from it"
        raise PosttrainError(Problem(f"{home} can be written by others", why=why, remedy="remove it"))
    place = home / _fingerprint()
    if not is_complete(place):
        partial = Path(tempfile.mkdtemp(dir=home, prefix="partial-"))
        try:
            (partial / "seccomp.bpf").write_bytes(seccomp.filter_program())
            _fill(partial / "root")
            seal(partial)
            # Executable and not readable: the kernel then lets nobody trace the process or read its memory.
            (partial / "root" / interpreter().lstrip("/")).chmod(0o111)
            partial.chmod(0o755)
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
        except OSError:
            if not is_complete(place):  # another process may have been first
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return place


def _version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _executable() -> Path:
    """The interpreter beneath a virtual environment."""
    own = Path(sys.base_prefix) / "bin" / f"python{_version()}"
    return (own if own.exists() else Path(sys.executable)).resolve()


def _fingerprint() -> str:
    digest = hashlib.blake2b(f"{sys.version} {_executable()}".encode(), digest_size=8)
    for file in (Path(__file__), Path(seccomp.__file__), *sorted(JUDGE.glob("*.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _fill(root: Path) -> None:
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    inside = root / PREFIX / "lib" / f"python{_version()}"
    shutil.copytree(library, inside, ignore=_left_out, symlinks=False)
    _copy_libraries(root, [_executable(), *(inside / "lib-dynload").glob("*.so")])
    package = inside / "posttrain" / "sandbox"
    shutil.copytree(JUDGE, package / "judge", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (root / "tmp").mkdir()
    (root / "dev").mkdir()
    for device in DEVICES:
        (root / "dev" / device).touch()
    # Compiled once here: nothing can be written there later.
    compiled = [sys.executable, "-m", "compileall", "-q", "-x", "bad_coding|badsyntax", str(inside)]
    subprocess.run(compiled, check=False, capture_output=True)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644 | (path.stat().st_mode & 0o111))
    target = root / interpreter().lstrip("/")
    target.parent.mkdir()
    shutil.copy2(_executable(), target)


def _left_out(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in LEFT_OUT or name.startswith("config-") or name.endswith(".a")}


def _copy_libraries(root: Path, files: list[Path]) -> None:
    """Copy the shared libraries that these files load to the places where they are looked for."""
    ldd = shutil.which("ldd")
    if ldd is None:
        why = "it tells which shared libraries the interpreter in the sandbox needs"
        raise PosttrainError(Problem("ldd is not installed", why=why, remedy="install it (Debian: libc-bin)"))
    told = subprocess.run([ldd, *map(str, files)], capture_output=True, text=True, check=False).stdout
    for line in told.splitlines():
        words = line.split()
        found = next((word for word in words if word.startswith("/") and not word.endswith(":")), None)
        if found is None or not os.path.isfile(found):
            continue
        path = Path(found)
        prefix = Path(sys.base_prefix)
        inside = Path(PREFIX) / path.relative_to(prefix) if _own(path, prefix) else path.relative_to("/")
        target = root / inside
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path.resolve(), target)


def _own(path: Path, prefix: Path) -> bool:
    """Whether a library belongs to the interpreter's installation (found from where it lies), not to the system."""
    return path.is_relative_to(prefix) and prefix != Path("/usr")
