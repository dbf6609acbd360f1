"""Unpacks Debian packages of another architecture or suite, with this machine's own apt.

apt gets its own source list, package lists, cache and dpkg status: the system is not
touched and root is not needed. Dependencies come along, without recommendations. The
archive is the one that this machine's apt is configured with, and signatures are checked
with its keyring.
"""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEYRINGS = [f"/usr/share/keyrings/debian-archive-keyring.{end}" for end in ("gpg", "pgp")]
TOOLS = {"apt-get": "apt", "dpkg-deb": "dpkg", "dpkg": "dpkg"}
UNREACHABLE = re.compile(r"Could not (?:resolve|connect)|Temporary failure|Failed to fetch|timed out|Unable to connect")

WRAPPER = """\
#!/bin/sh
# Runs an unpacked program through the loader and libraries it was built for. Finds
# everything from its own place, so the directory can be moved.
root=$(dirname "$(readlink -f "$0")")/../root
export QEMU_MODULE_DIR="$root/{modules}"
exec "$root/{loader}" --library-path "{libraries}" --argv0 "$0" "$root/{binary}" {arguments} "$@"
"""


class PackageError(Exception):
    """Why packages cannot be had, in one line, with what to do."""


@dataclass
class Archive:
    """Where packages come from."""

    uri: str
    keyring: str

    @classmethod
    def of_this_machine(cls, uri=None, keyring=None):
        """What this machine's apt uses, except for what is given."""
        for tool, package in TOOLS.items():
            if not shutil.which(tool):
                raise PackageError(
                    f"{tool} not found: this needs a Debian system (package {package}); "
                    "on another, copy the output folder of a run on Debian"
                )
        if not (uri and keyring):
            found_uri, found_keyring = machine_archive()
            uri, keyring = uri or found_uri, keyring or found_keyring
        return cls(uri, keyring)


def unpack(out, archive, arch, suite, names):
    """Unpacks packages and what they depend on below OUT/root. Returns a list of lines
    "name version architecture sha256"."""
    out = Path(out).resolve()
    for folder in ("lists/partial", "cache/archives/partial", "dpkg", "root"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / "dpkg/status").touch()  # empty: nothing counts as installed
    write_sources(out / "sources.list", archive, arch, suite)

    apt = ["apt-get", "-q", *apt_options(out, arch, suite)]
    run_apt(archive, apt + ["update"])
    plan = run_apt(archive, apt + ["install", "--simulate", *names])
    found = sorted(re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", plan, re.MULTILINE))
    run_apt(archive, apt + ["install", "--yes", "--download-only", *names])

    listing = []
    for name, version, package_arch in found:
        deb = out / f"cache/archives/{name}_{version.replace(':', '%3a')}_{package_arch}.deb"
        run(["dpkg-deb", "--extract", str(deb), str(out / "root")])
        listing.append(f"{name} {version} {package_arch} {hashlib.sha256(deb.read_bytes()).hexdigest()}")
    return listing


def write_wrapper(out, name, binary, arguments=""):
    """Writes OUT/bin/NAME, which runs OUT/root/BINARY whatever the host's own C library is.
    The arguments may use $root."""
    root = Path(out) / "root"
    loaders = sorted(root.glob("usr/lib/*/ld-linux*.so.*"))
    if not loaders or not (root / binary).exists():
        raise PackageError(f"{binary} or its dynamic loader is not below {root}: delete {out} and try again")
    loader = loaders[0].relative_to(root)
    libraries = ":".join([f"$root/{loader.parent}", f"$root/{loader.parent}/systemd"])
    wrapper = Path(out) / "bin" / name
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(
        WRAPPER.format(
            modules=loader.parent / "qemu", loader=loader, libraries=libraries, binary=binary, arguments=arguments
        )
    )
    wrapper.chmod(0o755)
    return wrapper


def machine_architecture():
    """This machine's Debian architecture, as amd64."""
    return run(["dpkg", "--print-architecture"]).strip()


def cache_folder(name):
    """Where NAME is kept by default."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "secondwind" / name


def machine_archive():
    """(URI, keyring) of the Debian archive that this machine's apt uses."""
    give = "give --archive URI and --keyring FILE"
    try:
        system = Path("/etc/os-release").read_text()
    except OSError:
        raise PackageError(f"/etc/os-release cannot be read: {give}") from None
    release = re.search(r"^VERSION_CODENAME=(\S+)", system, re.MULTILINE)
    if not release:
        raise PackageError(f"/etc/os-release names no Debian release: {give}")
    fields = "$(SITE)|$(RELEASE)|$(SOURCESENTRY)"
    for line in run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]).splitlines():
        site, suite, entry = line.split("|")
        if suite == release[1] and site.rstrip("/").endswith("/debian"):
            return site, signed_by(entry.rsplit(":", 1)[0])
    raise PackageError(f"no Debian archive for {release[1]} in apt's sources (or apt was never updated): {give}")


def signed_by(source_file):
    """The keyring named in an apt source file, or Debian's usual one."""
    text = Path(source_file).read_text()
    named = re.findall(r"signed-by\s*[:=]\s*(/[^\s,\]]+)", text, re.IGNORECASE)
    for keyring in named + KEYRINGS:
        if Path(keyring).exists():
            return keyring
    raise PackageError("no Debian archive keyring found: install debian-archive-keyring, or give --keyring FILE")


def write_sources(path, archive, arch, suite):
    """One line for the suite; backports also need the suite they are built on."""
    suites = [suite]
    if suite.endswith("-backports"):
        suites.append(suite.removesuffix("-backports"))
    options = f"[arch={arch} target=Packages lang=none signed-by={archive.keyring}]"
    path.write_text("".join(f"deb {options} {archive.uri} {name} main\n" for name in suites))


def apt_options(out, arch, suite):
    options = {
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Default-Release": suite,
        "APT::Install-Recommends": "0",
        "APT::Update::Error-Mode": "any",
        "Acquire::Retries": "2",
        "Dir::State": out,
        "Dir::State::Lists": out / "lists",
        "Dir::State::status": out / "dpkg/status",  # its folder also holds dpkg's lock
        "Dir::Cache": out / "cache",
        "Dir::Etc::SourceList": out / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
    }
    if os.geteuid() == 0:
        options["APT::Sandbox::User"] = "root"  # apt's own user may not reach the folder
    return [f"-o{name}={value}" for name, value in options.items()]


def run_apt(archive, command):
    """Runs apt; tells a network that is not there from other failures."""
    try:
        return run(command)
    except PackageError as failure:
        if UNREACHABLE.search(str(failure)):
            raise PackageError(
                f"the Debian archive {archive.uri} cannot be reached: connect this machine to a network "
                "and try again, or name another with --archive URI"
            ) from None
        raise


def run(command):
    """Runs a command and returns its stdout. The error carries its last words."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        wrong = [line for line in said if line.startswith(("E:", "dpkg", "Err:"))] or said[-3:]
        raise PackageError(f"{command[0]} failed: {'; '.join(wrong)[:1000]}")
    return done.stdout
