"""Writes an ext4 file system with given entries into a sparse image file.

mke2fs and debugfs (Debian: e2fsprogs) do it without mounting anything, so no root is needed.
The same entries and the same e2fsprogs give the same bytes: numbers and times are fixed,
all belongs to root.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from packages import PackageError

UUID = "5ec04d81-0d15-4b00-8000-000000000001"
HASH_SEED = "5ec04d81-0d15-4b00-8000-000000000002"
LABEL = "secondwind"
BLOCK_BYTES = 4096
JOURNAL_MIB = 8
UNIX_TIME = 1767225600  # 2026-01-01, what the machine's own clock begins with
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def tool(name):
    """The path of a program of e2fsprogs."""
    found = shutil.which(name, path=PATH)
    if not found:
        raise PackageError(f"{name} not found: install it (Debian: e2fsprogs)")
    return found


def version():
    """What decides on the bytes beside the entries."""
    return subprocess.run([tool("mke2fs"), "-V"], capture_output=True, text=True).stderr


def write(image, size_bytes, entries):
    """Makes `image` of entries as `Initramfs` has them: path -> (mode, content, major, minor)."""
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    features = ["-U", UUID, "-L", LABEL, "-m", "0", "-J", f"size={JOURNAL_MIB}"]
    extended = f"hash_seed={HASH_SEED},root_owner=0:0,lazy_itable_init=1"
    run([tool("mke2fs"), "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), *features, "-E", extended, str(image)])
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for number, path in enumerate(sorted(entries)):
            commands += commands_of(Path(folder) / str(number), path, *entries[path])
        script = Path(folder) / "script"
        script.write_text("".join(f"{command}\n" for command in commands))
        said = run([tool("debugfs"), "-w", "-f", str(script), str(image)])
    # debugfs ends well whatever happened; it echoes its commands, the rest is complaint or
    # the number of an inode
    wrong = [line for line in said.splitlines() if not line.startswith(("debugfs", "Allocated inode"))]
    if wrong:
        raise PackageError(f"debugfs failed: {'; '.join(wrong)[:1000]}")
    run([tool("e2fsck"), "-f", "-n", str(image)])


def commands_of(content_file, path, mode, content, major, minor):
    if any(character.isspace() or character == '"' for character in path):
        raise PackageError(f"{path!r} cannot be named in a script of debugfs")
    if stat.S_ISDIR(mode):
        yield f"mkdir {path}"
    elif stat.S_ISREG(mode):
        content_file.write_bytes(content)
        yield f"write {content_file} {path}"
    elif stat.S_ISCHR(mode):
        # debugfs makes nodes in its current folder only
        yield f"cd /{os.path.dirname(path)}"
        yield f"mknod {os.path.basename(path)} c {major} {minor}"
        yield "cd /"
    else:
        raise PackageError(f"{path} has a mode that is not written here: {mode:o}")
    yield f"set_inode_field {path} mode 0{mode:o}"


def run(command):
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(UNIX_TIME), "LC_ALL": "C"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise PackageError(f"{command[0]} failed: {(done.stdout + done.stderr).strip()[-1000:]}")
    return done.stdout + done.stderr
