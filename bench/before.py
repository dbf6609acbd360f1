"""An earlier state of this project, built once and kept, to measure beside the present one."""

import os
import subprocess
import tempfile
from pathlib import Path

from programs import PROJECT, BenchError


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "secondwind" / "before"


def program_of(commit, say):
    """Path of the release build of a commit of this repository."""
    found = git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found.returncode:
        raise BenchError(
            f"commit {commit} is not in this repository's history (a shallow clone?): "
            "fetch it with git fetch --unshallow, or name another with --before"
        )
    name = found.stdout.strip()
    kept = cache_folder() / name / "secondwind"
    if not kept.exists():
        say(f"building commit {name[:12]}, once")
        build(name, kept)
    return kept


def build(name, kept):
    with tempfile.TemporaryDirectory(prefix="secondwind-before-") as folder:
        source = Path(folder)
        archive = subprocess.Popen(["git", "archive", name], cwd=PROJECT, stdout=subprocess.PIPE)
        unpacked = subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout)
        if archive.wait() or unpacked.returncode:
            raise BenchError(f"commit {name} cannot be unpacked")
        # A target folder that others share would hold the present state's build.
        environment = os.environ | {"CARGO_TARGET_DIR": str(source / "target")}
        command = ["cargo", "build", "--release", "--quiet", "--locked", "--package", "secondwind"]
        if subprocess.run(command, cwd=source, env=environment).returncode:
            raise BenchError(f"commit {name} does not build: cargo build --release failed (see above)")
        kept.parent.mkdir(parents=True, exist_ok=True)
        # A build that is interrupted here leaves nothing that looks whole.
        partial = kept.with_suffix(".partial")
        partial.write_bytes((source / "target/release/secondwind").read_bytes())
        partial.chmod(0o755)
        partial.replace(kept)


def git(*words):
    return subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True)
