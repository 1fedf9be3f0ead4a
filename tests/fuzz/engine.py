# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions of a reader within budgets of CPU time and memory, mutations with a fixed seed, findings made small.

The time of an execution is CPU time of the process (ITIMER_PROF), so that a busy machine changes nothing. Its memory is
bounded by RLIMIT_AS: address space that an execution asks for beyond its budget is refused, and the MemoryError is a
finding. Both are the readers' to keep whatever a file claims.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import zstandard

from tests.fuzz.targets import Target

__all__ = [
    "CORPUS",
    "MOST_FILES",
    "MOST_FILE_BYTES",
    "SECONDS",
    "Arena",
    "Finding",
    "Overrun",
    "corpus_of",
    "fuzz",
    "keep",
    "minimised",
]

CORPUS = Path(__file__).with_name("corpus")
MOST_FILES = 20
MOST_FILE_BYTES = 4096
"""Bounds of the corpus of one target, in files and in bytes of a file as it is stored."""
SECONDS = 4.0
"""CPU time that one execution may take: the slowest seed takes a hundredth of it."""
STACK_BYTES = 1 << 20
"""Stack of a thread: the system's 8 MiB, of several that are about to end, count in the memory of an execution."""
RAM = Path("/dev/shm")


class Overrun(BaseException):
    """An execution that took more than its time. No handler of `Exception` in a reader stops it."""


@dataclass(frozen=True)
class Finding:
    """An execution that ended otherwise than it may.

    Attributes:
        target: name of the target.
        data: the file.
        message: the exception, and the line of the library that raised it.
    """

    target: str
    data: bytes
    message: str

    @property
    def key(self) -> str:
        """The exception and its place, which all findings of one defect share."""
        kind, words = self.message.split(":", 1)
        return f"{kind}{words[words.rfind(' (') :] if words.endswith(')') else words}"

    @property
    def name(self) -> str:
        """A name of its file: the kind of the exception, and a digest of the content."""
        kind = "".join(letter for letter in self.message.split(":")[0].lower() if letter.isalnum() or letter in "-_")
        return f"found-{kind}-{hashlib.sha256(self.data).hexdigest()[:8]}"


class Arena:
    """A folder in memory in which a target is run, on one core and so without threads. A context manager.

    Args:
        target: the target.
        seconds: CPU time of an execution.
        exact: whether memory is measured by tracemalloc, which is slow and counts all that Python and NumPy allocate.

    Attributes:
        executions: number of executions so far.
    """

    def __init__(self, target: Target, *, seconds: float = SECONDS, exact: bool = False) -> None:
        self.target = target
        self.executions = 0
        self._seconds = seconds
        self._exact = exact
        self._stack = ExitStack()
        self._path = Path()

    def __enter__(self) -> Arena:
        folder = TemporaryDirectory(prefix="hibernaut-fuzz-", dir=RAM if RAM.is_dir() else None)
        self._path = Path(self._stack.enter_context(folder)) / "file"
        cores = os.sched_getaffinity(0)
        self._stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, {min(cores)})
        self._stack.callback(threading.stack_size, threading.stack_size(STACK_BYTES))
        handler = signal.signal(signal.SIGPROF, _overrun)
        self._stack.callback(signal.signal, signal.SIGPROF, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def execute(self, data: bytes) -> Finding | None:
        """Run the target on a file, and return the finding if it ended as it may not."""
        self.executions += 1
        self._path.write_bytes(data)
        budget = self.target.base_bytes + self.target.factor * len(data)
        try:
            with _limited(budget, self._seconds, exact=self._exact), warnings.catch_warnings():
                warnings.simplefilter("error")
                self.target.run(self._path)
        except self.target.raises as error:
            if not str(error).strip():
                return self._finding(data, error, "an error without a message")
        except (Exception, Overrun) as error:
            return self._finding(data, error, str(error))
        return None

    def accepts(self, data: bytes) -> bool:
        """Whether the target reads a file to its end, without any error."""
        self._path.write_bytes(data)
        try:
            self.target.run(self._path)
        except self.target.raises:
            return False
        return True

    def _finding(self, data: bytes, error: BaseException, words: str) -> Finding:
        place = ""
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if "hibernaut" in code.co_filename and "tests" not in code.co_filename.split("/"):
                place = f" ({Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name})"
            trace = trace.tb_next
        return Finding(self.target.name, data, f"{type(error).__name__}: {' '.join(words.split())[:200]}{place}")


def _overrun(_signal: int, _frame: FrameType | None) -> None:
    raise Overrun("it takes more CPU time than it may")


@contextmanager
def _limited(budget_bytes: int, seconds: float, *, exact: bool) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    if exact:
        tracemalloc.start()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + budget_bytes, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
        if exact and tracemalloc.get_traced_memory()[1] > budget_bytes:
            raise MemoryError(f"{tracemalloc.get_traced_memory()[1]} bytes, more than {budget_bytes}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if exact:
            tracemalloc.stop()


def corpus_of(target: Target) -> dict[str, bytes]:
    """Return the files of a target's corpus by name, unpacked."""
    found = {}
    for path in sorted((CORPUS / target.name).glob("*")):
        content = path.read_bytes()
        packed = path.suffix == ".zst"
        found[path.name] = zstandard.decompress(content, max_output_size=64 << 20) if packed else content
    return found


def keep(folder: Path, name: str, data: bytes) -> Path:
    """Write a file into a corpus, packed if it is large, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = len(data) > MOST_FILE_BYTES
    path = folder / (f"{name}.zst" if packed else name)
    path.write_bytes(zstandard.compress(data, 19) if packed else data)
    return path


def fuzz(
    arena: Arena,
    executions: int,
    *,
    seed: int = 0,
    inputs: Sequence[bytes] = (),
    most_findings: int | None = None,
    proceeds: Callable[[], bool] = lambda: True,
    before: Callable[[int, bytes], object] = lambda _number, _data: None,
) -> list[Finding]:
    """Run mutations of seeds and corpus, without coverage, and return the findings, one for each defect.

    Args:
        arena: the target's arena.
        executions: most executions.
        seed: of the mutations; the same seed makes the same files.
        inputs: files to mutate; those of the target by default.
        most_findings: number of findings after which the work ends.
        proceeds: called before each execution; ends the work by False.
        before: called with the number of executions so far and the file, before each.
    """
    target = arena.target
    files = list(inputs) or [*target.seeds().values(), *corpus_of(target).values()]
    rng = random.Random(seed)
    found: dict[str, Finding] = {}
    for _ in range(executions):
        if not proceeds() or len(found) == most_findings:
            break
        data = target.mutated(rng.choice(files), rng, files)
        before(arena.executions, data)
        finding = arena.execute(data)
        if finding is not None:
            found.setdefault(finding.key, finding)
    return list(found.values())


def minimised(arena: Arena, finding: Finding, executions: int = 400) -> Finding:
    """Return a smaller file of the same defect: shorter, and with fewer bytes that are not zero."""
    data, left = finding.data, executions

    def same(other: bytes) -> bool:
        nonlocal left
        left -= 1
        again = arena.execute(other)
        return again is not None and again.key == finding.key

    size = 1 << max(len(data) - 1, 0).bit_length()
    while size >= 1 and left > 0:
        at = (len(data) - 1) // size * size if data else 0
        while at >= 0 and left > 0 and data:
            shorter = data[:at] + data[at + size :]
            zeroed = data[:at] + bytes(len(data[at : at + size])) + data[at + size :]
            if len(shorter) < len(data) and same(shorter):
                data = shorter
            elif zeroed != data and same(zeroed):
                data = zeroed
            at -= size
        size //= 2
    return Finding(finding.target, data, finding.message)
