# SPDX-License-Identifier: GPL-2.0-or-later
"""A TPM 2.0, by the commands of tpm2-tools: it keeps a counter, and releases a key to its own machine alone.

tpm2-tools finds the TPM as it always does: /dev/tpmrm0, or what TPM2TOOLS_TCTI names. Secrets go through pipes; no
command line and no file has one. Files that the commands want are anonymous (memfd_create(2)).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from hibernaut.errors import FormatError, HibernautError

__all__ = ["PCRS", "TpmBlob", "TpmCounter", "pack_blob", "seal_by_tpm", "unpack_blob", "unseal_by_tpm"]

TOOL_SECONDS = 120
"""A TPM takes seconds for a key; one that answers nothing for so long is broken."""
FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PCRS = re.compile(r"(?:sha1|sha256|sha384|sha512):\d{1,2}(?:,\d{1,2})*")
"""A bank and its registers, as tpm2-tools writes them: sha256:0,7."""
PRIMARY = (
    "tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc256:aes128cfb",
    "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt|noda",
)  # fmt: skip
"""The key above all sealed keys, made anew from the TPM's seed each time, always the same one."""
BLOB_MAGIC = b"hibernaut-tpm1\r\n"
BLOB_FIELDS = 3
MOST_FIELD_BYTES = 4096
COUNTER_BYTES = 8
NV_TYPE, NV_COUNTER = 0xF0, 0x10
"""TPMA_NV, bits 7:4: the type of an index; a counter (TPM 2.0 Library, part 2, section 13.4)."""
NV_WRITTEN = 1 << 29
DEFINED_BY = "tpm2_nvdefine -C o -s 8 -a 'nt=counter|authread|authwrite|ownerread|ownerwrite|no_da' {index:#x}"
VALUE = re.compile(r"attributes:\n(?:.*\n)*?\s*value: 0x([0-9A-Fa-f]+)")


@dataclass(frozen=True)
class TpmBlob:
    """A key as a TPM has sealed it: without that TPM, the blob tells nothing.

    Attributes:
        public: TPM2B_PUBLIC.
        private: TPM2B_PRIVATE, encrypted by the TPM.
        pcrs: registers that must be as they were, see `PCRS`; empty for none.
    """

    public: bytes
    private: bytes
    pcrs: str = ""


def pack_blob(blob: TpmBlob) -> bytes:
    """Return the bytes of a blob: magic, then registers, public and private part, each after its length (2 bytes)."""
    parts = (blob.pcrs.encode("ascii"), blob.public, blob.private)
    return BLOB_MAGIC + b"".join(len(part).to_bytes(2, "little") + part for part in parts)


def unpack_blob(data: bytes, name: str) -> TpmBlob:
    """Return the blob that bytes are. Raises FormatError."""
    parts, at = [], len(BLOB_MAGIC)
    for _ in range(BLOB_FIELDS):
        size_bytes = int.from_bytes(data[at : at + 2], "little")
        parts.append(data[at + 2 : at + 2 + size_bytes])
        at += 2 + size_bytes
    pcrs = parts[0].decode("latin-1")
    sizes_fit = at == len(data) and all(0 < len(part) <= MOST_FIELD_BYTES for part in parts[1:])
    if not (data.startswith(BLOB_MAGIC) and sizes_fit and (not pcrs or PCRS.fullmatch(pcrs))):
        raise FormatError("the key that a TPM has sealed is damaged", source=name, advice="copy the file again")
    return TpmBlob(parts[1], parts[2], pcrs)


def seal_by_tpm(secret: bytes, pcrs: str = "") -> TpmBlob:
    """Let the TPM seal a secret of at most 128 bytes, and return it once the TPM has released it again.

    Args:
        secret: the bytes.
        pcrs: registers that must be as they are now when it is released, see `PCRS`; empty for none.

    Raises:
        HibernautError: tpm2-tools is not installed, there is no TPM, or it refuses.
    """
    if pcrs and not PCRS.fullmatch(pcrs):
        raise HibernautError(
            f"{pcrs!r} names no PCRs of a TPM; expected a bank and its registers", advice="give them as in sha256:0,7"
        )
    with _Tools() as tools:
        primary, public, private = tools.file(), tools.file(), tools.file()
        tools.run([*PRIMARY, "-c", primary])
        attributes, policy = "fixedtpm|fixedparent|noda", []
        if pcrs:
            policy = ["-L", tools.file()]
            tools.run(["tpm2_createpolicy", "-Q", "--policy-pcr", "-l", pcrs, *policy])
        else:
            attributes += "|userwithauth"
        words = ["tpm2_create", "-Q", "-C", primary, "-i", "-", "-a", attributes, *policy, "-u", public, "-r", private]
        tools.run(words, secret)
        blob = TpmBlob(tools.content(public), tools.content(private), pcrs)
    if unseal_by_tpm(blob) != secret:
        raise HibernautError("the TPM returns another key than it was given", advice="leave out --tpm")
    return blob


def unseal_by_tpm(blob: TpmBlob) -> bytes:
    """Return the secret that the TPM has sealed.

    Raises:
        HibernautError: tpm2-tools is not installed, there is no TPM, it is another one, or its PCRs differ.
    """
    with _Tools() as tools:
        primary, loaded = tools.file(), tools.file()
        public, private = tools.file(blob.public), tools.file(blob.private)
        tools.run([*PRIMARY, "-c", primary])
        tools.run(
            ["tpm2_load", "-Q", "-C", primary, "-u", public, "-r", private, "-c", loaded],
            refusal="this TPM has not sealed the key, or was cleared since",
            advice="use the machine that sealed it, or make a new pair",
        )
        given = ["-p", f"pcr:{blob.pcrs}"] if blob.pcrs else []
        return tools.run(
            ["tpm2_unseal", "-Q", "-c", loaded, *given],
            refusal=f"the TPM does not release the key{f': its {blob.pcrs} differ' if blob.pcrs else ''}",
            advice="start what was running when the key was made, or make a new pair",
        )


@dataclass(frozen=True)
class TpmCounter:
    """An NV index of a TPM that only counts up.

    A user of the machine can remove the index. One that is made anew begins above all counts that the TPM ever had
    (TPM 2.0 Library, part 3, TPM2_NV_Increment), so an older image stays older; an index of another type is refused.

    Attributes:
        index: its handle, 0x01000000 to 0x01ffffff.
    """

    index: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"TPM index {self.index:#x}")

    def value(self) -> int:
        """Return its count. Raises HibernautError, also if there is no such index, or it is not a counter."""
        with _Tools() as tools:
            return self._value(tools)

    def at_most(self, manifest_counter: int) -> int:
        """Return the count, for a manifest. Raises HibernautError if the manifest's is larger: of another counter."""
        count = self.value()
        if manifest_counter > count:
            raise HibernautError(
                f"the seal has counter {manifest_counter}, and {self.name} is at {count}: it counts for other seals",
                advice="give the counter that the image was sealed with",
            )
        return count

    def raise_to(self, count: int) -> None:
        """Raise it by one to a count, or do nothing if it is there. Raises HibernautError, also if it is elsewhere."""
        with _Tools() as tools:
            found = self._value(tools)
            if found < count:
                tools.run(["tpm2_nvincrement", "-Q", f"{self.index:#x}"])
                found = self._value(tools)
        if found != count:
            raise HibernautError(
                f"{self.name} is at {found}, and {count} was expected: something else counts",
                advice="run the command again",
            )

    def next_value(self) -> int:
        """Return the count that one more makes. Raises HibernautError."""
        with _Tools() as tools:
            count = self._value(tools, is_new=True)
            if count < 0:  # it begins above all counts that there were
                tools.run(["tpm2_nvincrement", "-Q", f"{self.index:#x}"])
                count = self._value(tools)
            return count + 1

    def _value(self, tools: _Tools, is_new: bool = False) -> int:
        """Return the count; -1 for one that has not counted yet, if that is accepted."""
        index = f"{self.index:#x}"
        printed = tools.run(
            ["tpm2_nvreadpublic", index],
            refusal=f"the TPM has no index {index}",
            advice=f"run `{DEFINED_BY.format(index=self.index)}`",
        )
        found = VALUE.search(printed.decode("ascii", "replace"))
        attributes = int(found[1], 16) if found else 0
        if attributes & NV_TYPE != NV_COUNTER:
            raise HibernautError(f"{self.name} is not a counter", advice="give another index")
        if not attributes & NV_WRITTEN:
            if is_new:
                return -1
            raise HibernautError(f"{self.name} has not counted yet", advice="use it for a seal first")
        data = tools.run(["tpm2_nvread", index])
        if len(data) != COUNTER_BYTES:
            raise HibernautError(
                f"{self.name} has {len(data)} bytes; expected {COUNTER_BYTES}", advice="give another index"
            )
        return int.from_bytes(data, "big")


class _Tools:
    """Commands of tpm2-tools, and their anonymous files."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._fds: dict[str, int] = {}

    def __enter__(self) -> _Tools:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def file(self, content: bytes = b"") -> str:
        """Return the path of a new file in memory, which ends with this object."""
        fd = os.memfd_create("tpm", os.MFD_CLOEXEC)
        self._open.callback(os.close, fd)
        os.write(fd, content)
        path = f"/dev/fd/{fd}"
        self._fds[path] = fd
        return path

    def content(self, path: str) -> bytes:
        """Return what a command wrote to a file."""
        return os.pread(self._fds[path], MOST_FIELD_BYTES + 2, 0)

    def run(self, words: Sequence[str], given: bytes = b"", refusal: str = "", advice: str | None = None) -> bytes:
        """Run a command and return what it printed.

        Args:
            words: its name and arguments, none of them secret.
            given: its standard input.
            refusal: the meaning of its failure; empty: its own message.
            advice: what to do then.

        Raises:
            HibernautError: it is not installed, fails, or does not end.
        """
        done = self._done(words, given)
        if done.returncode:
            said = _message(done.stderr.decode("utf-8", "replace"))
            self._flush("-t", "-l")
            if _has_no_tpm(said):
                raise HibernautError(
                    f"no TPM answers {words[0]}: {said}", advice="see TPM2TOOLS_TCTI in tpm2-tools(1), or do without"
                )
            raise HibernautError(f"{refusal} ({said})" if refusal else f"{words[0]}: {said}", advice=advice)
        if any(word in ("-c", "-C") for word in words):
            self._flush("-t")
        return done.stdout

    def _flush(self, *kinds: str) -> None:
        """Let the TPM forget objects that a command has loaded.

        Without a resource manager (/dev/tpm0) they fill its three slots; behind one, each command ends with none.
        """
        for kind in kinds:
            with suppress(HibernautError):  # an initramfs does not have it
                self._done(["tpm2_flushcontext", "-Q", kind], b"")

    def _done(self, words: Sequence[str], given: bytes) -> subprocess.CompletedProcess[bytes]:
        path = shutil.which(words[0], path=os.pathsep.join((os.environ.get("PATH", ""), FOLDERS)))
        if path is None:
            raise HibernautError(f"{words[0]} is not installed", advice="install the package tpm2-tools")
        try:
            return subprocess.run(  # nosec B603 # words, never a shell's line; programs of the system's folders
                [path, *words[1:]],
                input=given,
                capture_output=True,
                check=False,
                timeout=TOOL_SECONDS,
                pass_fds=tuple(self._fds.values()),
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise HibernautError(
                f"the TPM did not answer {words[0]} within {TOOL_SECONDS} s", advice="see the kernel's log"
            ) from None
        except OSError as error:
            raise HibernautError(
                f"{words[0]} does not run: {error.strerror}", advice="install the package tpm2-tools"
            ) from error


def _message(printed: str) -> str:
    """Return the line of tpm2-tools that says most: its own first error that is not about a function."""
    lines = [line.removeprefix("ERROR: ").strip() for line in printed.splitlines() if line.startswith("ERROR: ")]
    return lines[0] if lines else "it failed without a message"


def _has_no_tpm(message: str) -> bool:
    return message.startswith("Could not load tcti")
