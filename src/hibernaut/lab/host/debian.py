# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages without installing them: any suite, from the mirror in this machine's apt configuration."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hibernaut.errors import LabUnavailable
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.programs import program, run
from hibernaut.volumes.output import write_file

__all__ = ["Archive", "Mirrors", "configured_mirrors"]

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
NATIVE_ARCHITECTURE = "amd64"
MERGED_FOLDERS = ("bin", "sbin", "lib", "lib64")
"""Links into usr since Debian 12 (`usrmerge`); packages still contain paths of both kinds."""


@dataclass(frozen=True)
class Mirrors:
    """Mirrors as apt's `URI`s; `security` is None if none is configured."""

    main: str
    security: str | None


def configured_mirrors() -> Mirrors:
    """Return the mirrors of Debian's archive in this machine's apt configuration.

    Raises:
        LabUnavailable: none is configured, or apt is not installed.
    """
    command = [
        program("apt-get"),
        "indextargets",
        "--format",
        "$(ORIGIN)|$(REPO_URI)|$(CODENAME)",
        "Created-By: Packages",
    ]
    found = [line.split("|") for line in run(command, doing="listing apt's mirrors").splitlines()]
    debian = [(uri, codename) for origin, uri, codename in found if origin == "Debian"]
    main = [uri for uri, codename in debian if "-" not in codename]
    security = [uri for uri, codename in debian if codename.endswith("-security")]
    if not main:
        raise LabUnavailable("apt's configuration has no mirror of Debian's archive", cure="--mirror URL")
    return Mirrors(main[0], security[0] if security else None)


SIGNED_ONLY = tuple(
    word
    for name in (
        "Acquire::AllowInsecureRepositories",
        "Acquire::AllowWeakRepositories",
        "Acquire::AllowDowngradeToInsecureRepositories",
        "APT::Get::AllowUnauthenticated",
    )
    for word in ("-o", f"{name}=false")
)
"""Options without which the machine's own configuration of apt may allow archives without a signature."""


class Archive:
    """One suite of Debian's archive, with an apt configuration of its own.

    Args:
        cache: cache for its lists and packages.
        suite: bookworm, trixie, trixie-backports, ...
        mirror: mirror in place of the configured ones.
        architecture: architecture of its packages.
    """

    def __init__(
        self, cache: Cache, suite: str, mirror: str | None = None, architecture: str = NATIVE_ARCHITECTURE
    ) -> None:
        self.suite = suite
        self._mirror = mirror
        self._architecture = architecture
        self._root = cache.root / "apt" / (suite if architecture == NATIVE_ARCHITECTURE else f"{suite}-{architecture}")

    def newest_release(self, prefixes: Sequence[str], pattern: str) -> str:
        """Return the release with the highest numbers for which the suite has all packages.

        An archive drops old packages one by one: a release may have its image and no longer its modules.

        Args:
            prefixes: names of the packages without the release.
            pattern: pattern of the releases.

        Raises:
            LabUnavailable: there is none, or the archive cannot be reached.
        """
        names = set(self._apt("apt-cache", "pkgnames", doing=f"listing {self.suite}").split())
        found = {name.removeprefix(one) for one in prefixes for name in names if name.startswith(one)}
        releases = sorted(
            (release for release in found if re.fullmatch(pattern, release)),
            key=lambda release: [int(number) for number in re.findall(r"\d+", release)],
            reverse=True,
        )
        if not releases:
            raise LabUnavailable(f"no package in {self.suite} matches {prefixes[0]}{pattern}")
        for release in releases:
            if all(f"{prefix}{release}" in names for prefix in prefixes):
                return release
        missing = next(f"{prefix}{releases[0]}" for prefix in prefixes if f"{prefix}{releases[0]}" not in names)
        raise LabUnavailable(f"{self.suite} has no {missing}, and no older release is complete")

    def unpack(self, names: Iterable[str], folder: Path) -> None:
        """Download packages and unpack them into one folder, without running anything of them.

        Raises:
            LabUnavailable: a package cannot be downloaded or is damaged, or the disk is full.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix="packages.") as packages:
            self._download(list(names), Path(packages))
            _unpack(sorted(Path(packages).glob("*.deb")), folder)

    def _download(self, names: list[str], folder: Path) -> None:
        """Download packages into a folder; refresh lists that are so old that they name packages no longer there."""
        try:
            self._apt("apt-get", "download", *names, doing=f"downloading {names[0]}", cwd=folder)
        except LabUnavailable:
            (self._root / "apt.conf").unlink(missing_ok=True)
            self._apt("apt-get", "download", *names, doing=f"downloading {names[0]}", cwd=folder)

    def with_dependencies(self, names: Iterable[str]) -> list[str]:
        """Return packages and all their dependencies, as if nothing were installed. Raises LabUnavailable."""
        arguments = ["install", "--simulate", "--no-install-recommends", *names]
        planned = self._apt("apt-get", *arguments, doing=f"resolving dependencies in {self.suite}")
        return re.findall(r"^Inst (\S+)", planned, re.MULTILINE)

    def _apt(self, tool: str, *arguments: str, doing: str, cwd: Path | None = None) -> str:
        configuration = self._configured()
        apt = str(Path(program("apt-get")).with_name(tool))
        return run([apt, *SIGNED_ONLY, *arguments], cwd=cwd, env={"APT_CONFIG": str(configuration)}, doing=doing)

    def _configured(self) -> Path:
        """Return the apt configuration; make it and fetch its lists the first time, and when the mirror has changed."""
        configuration, sources_list = self._root / "apt.conf", self._root / "sources.list"
        sources = "".join(f"{line}\n" for line in self._sources())
        if configuration.exists() and sources_list.read_text() == sources:
            return configuration
        if not KEYRING.exists():
            raise LabUnavailable(
                "Debian's archive keys are not installed", cure="apt-get install debian-archive-keyring"
            )
        for folder in ("lists/partial", "cache/archives/partial"):
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        (self._root / "status").touch()
        configuration.unlink(missing_ok=True)  # its lists are not of these sources
        sources_list.write_text(sources)
        partial = self._root / "apt.conf.partial"
        settings = (
            f'Dir::Etc::sourcelist "{self._root}/sources.list";\n'
            'Dir::Etc::sourceparts "/dev/null";\n'
            'Dir::Etc::preferences "/dev/null";\n'
            'Dir::Etc::preferencesparts "/dev/null";\n'
            f'Dir::State::lists "{self._root}/lists";\n'
            f'Dir::State::status "{self._root}/status";\n'
            f'Dir::Cache "{self._root}/cache";\n'
            f'APT::Architecture "{self._architecture}";\n'
            f'APT::Architectures "{self._architecture}";\n'
            'APT::Sandbox::User "root";\n'
        )
        partial.write_text(settings)
        # A suite that a mirror lacks (security updates of a new suite, say) is fine; no lists at all are not.
        subprocess.run(  # nosec B603 # fixed words
            [program("apt-get"), *SIGNED_ONLY, "-qq", "update"],
            env={**os.environ, "APT_CONFIG": str(partial)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if not list((self._root / "lists").glob(f"*_{self.suite}_main_binary-{self._architecture}_Packages*")):
            raise LabUnavailable(
                f"the lists of Debian's {self.suite} could not be fetched",
                advice="check the network, or give another --mirror",
            )
        partial.unlink()
        write_file(configuration, settings.encode(), public=True)
        return configuration

    def _sources(self) -> list[str]:
        mirrors = Mirrors(self._mirror, None) if self._mirror else configured_mirrors()
        release = self.suite.split("-")[0]
        suites = [(mirrors.main, release)]
        if self.suite != release:
            suites.append((mirrors.main, self.suite))
        if mirrors.security:
            suites.append((mirrors.security, f"{release}-security"))
        return [f"deb [signed-by={KEYRING}] {uri} {suite} main" for uri, suite in suites]


def _refuse_links(package: Path, folder: Path) -> None:
    """Raise LabUnavailable if a package writes through a symbolic link: its own, or one that another has unpacked."""
    links: set[str] = set()
    command = [program("dpkg-deb"), "--fsys-tarfile", str(package)]
    with subprocess.Popen(  # nosec B603 # a package that apt has verified
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as source:
        try:
            with tarfile.open(fileobj=source.stdout, mode="r|") as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    above = [str(one) for one in path.parents if str(one) not in (".", *MERGED_FOLDERS)]
                    through = next((one for one in above if one in links or (folder / one).is_symlink()), None)
                    if through is not None or path.is_absolute() or ".." in path.parts:
                        raise LabUnavailable(
                            f"{package.name} writes {member.name} through a symbolic link or out of its folder",
                            advice="give another --mirror",
                        )
                    if member.issym():
                        links.add(str(path))
        except tarfile.TarError as error:
            raise LabUnavailable(f"{package.name} is damaged: {error}") from None
        finally:
            source.kill()


def _unpack(packages: Iterable[Path], folder: Path) -> None:
    """Unpack packages into a folder with a merged /usr. Raises LabUnavailable."""
    for name in MERGED_FOLDERS:
        (folder / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(f"usr/{name}")
    for package in packages:
        _refuse_links(package, folder)
        with subprocess.Popen(  # nosec B603 # a package that apt has verified
            [program("dpkg-deb"), "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as source:
            try:
                done = subprocess.run(  # nosec B603 # names of members are checked before
                    [program("tar"), "-x", "--keep-directory-symlink", "--no-same-owner", "-C", str(folder)],
                    stdin=source.stdout,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            except BaseException:  # an interrupt, too: Popen does not wait then
                source.kill()
                raise
        if source.returncode or done.returncode:
            raise LabUnavailable(f"unpacking {package.name} failed: {done.stderr.strip() or 'the package is damaged'}")
