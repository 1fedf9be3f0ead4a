# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of the guest's port, spoken with a guest that is a thread of the test."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import cast

import pytest

from hibernaut.errors import LabError
from hibernaut.lab.vm import port as port_module
from hibernaut.lab.vm.port import Port, facts_of, unescaped
from hibernaut.lab.vm.qemu import Qemu


class FakeQemu:
    """A QEMU whose guest is the other end of a socket pair."""

    def __init__(self) -> None:
        self.ours, self.guest = socket.socketpair()

    def connect(self, name: str) -> socket.socket:
        """Return this side's socket, as Qemu does."""
        assert name == "port"
        return self.ours

    def last_log_lines(self) -> tuple[str, ...]:
        """Return no log lines."""
        return ("[ 1.0] last log lines",)


@pytest.fixture
def fake() -> Iterator[FakeQemu]:
    """A QEMU whose guest is this test."""
    made = FakeQemu()
    yield made
    made.ours.close()
    made.guest.close()


def port_of(fake: FakeQemu) -> Port:
    """Return the port of a made-up QEMU."""
    return Port(cast(Qemu, fake))


def test_a_command_and_its_answer(fake: FakeQemu) -> None:
    """Sequence number and command go out on one line; the output comes back without the protocol's words."""
    port = port_of(fake)
    fake.guest.sendall(b"@ aa 0 hello 6.1\n@ aa 1 out one\n@ aa 1 out two words\n@ aa 1 end 0\n")
    assert port.hello(5).text == "6.1"
    reply = port.ask("uname", 5)
    assert (reply.session, reply.status, reply.lines) == ("aa", 0, ("one", "two words"))
    assert fake.guest.recv(100) == b"1 uname\n"


def test_noise_between_the_lines_is_passed_over(fake: FakeQemu) -> None:
    """Lines outside the protocol (a boot loader's greeting, a line cut by a reset) are not an answer."""
    port = port_of(fake)
    fake.guest.sendall(b"\x00\xff garbage\r\n@ aa 1 en\n@ aa 1 out x\r\n@ aa 1 end 3\n")
    reply = port.ask("x", 5)
    assert (reply.status, reply.lines) == (3, ("x",))


def test_a_resumed_machine_answers_in_its_own_name(fake: FakeQemu) -> None:
    """The end of the hibernation command comes from the session that was saved; output of the fresh boot is not its."""
    port = port_of(fake)
    port.send("resume")
    fake.guest.sendall(b"@ fresh 1 out trying\n@ saved 9 out resumed\n@ saved 9 end 0\n")
    reply = port.reply(None, 5, "resuming")
    assert (reply.session, reply.lines) == ("saved", ("resumed",))


def test_a_failed_command_says_what_the_guest_said(fake: FakeQemu) -> None:
    """A command that fails carries the guest's output and last log lines."""
    port = port_of(fake)
    fake.guest.sendall(b"@ aa 1 out no such file\n@ aa 1 end 1\n")
    with pytest.raises(LabError, match=r"'cat x' failed in the guest: no such file; last log lines of .*: .*last"):
        port.run("cat x", 5)


def test_silence_and_death_are_told_apart(fake: FakeQemu) -> None:
    """The error tells a guest that times out from one that has ended."""
    port = port_of(fake)
    with pytest.raises(LabError, match="timed out after 0 s"):
        port.ask("x", 0.05)
    assert not port.ended
    fake.guest.close()
    with pytest.raises(LabError, match="the guest ended"):
        port.hello(5)
    assert port.ended


def test_lines_are_kept_until_the_end_of_the_command(fake: FakeQemu) -> None:
    """Looking in between loses nothing, and takes no time where there is nothing."""
    port = port_of(fake)
    sequence = port.send("x")
    assert port.poll(sequence, 0) is None
    fake.guest.sendall(b"@ aa 1 out first\n")
    assert port.poll(sequence, 0) is None
    fake.guest.sendall(b"@ aa 1 out second\n@ aa 1 end 0\n")
    reply = port.poll(sequence, 0)
    assert reply is not None
    assert reply.lines == ("first", "second")
    fake.guest.close()
    assert port.poll(2, 0) is None
    assert port.ended


def test_silence_is_poked(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line goes out while nothing comes in, so that a lost interrupt is made up for."""
    monkeypatch.setattr(port_module, "POKE_SECONDS", 0.01)
    with pytest.raises(LabError):
        port_of(fake).hello(0.2)
    assert fake.guest.recv(10).startswith(b"\n")


def test_facts() -> None:
    """Words of the form KEY=VALUE are facts, others are not."""
    assert facts_of("region wish=2m:above pmd=0x1=2 word") == {"wish": "2m:above", "pmd": "0x1=2"}


def test_a_silent_guest_that_is_lost_is_not_waited_for(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait ends at the first silence that means a crash; a guest that still answers is listened to."""
    monkeypatch.setattr(port_module, "POKE_SECONDS", 0.01)
    port = port_of(fake)
    silences: list[float] = []

    def is_lost(silent_seconds: float) -> bool:
        silences.append(silent_seconds)
        return len(silences) > 3

    port.is_lost = is_lost
    fake.guest.sendall(b"@ aa 1 end 0\n")
    assert port.ask("true", 5).status == 0
    with pytest.raises(LabError, match=r"running 'cat x': the guest crashed"):
        port.ask("cat x", 3600)
    assert port.lost
    assert not port.ended
    assert silences == sorted(silences)


@pytest.mark.parametrize(
    "text", ['{"words": "Sleep verb \\"hibernate\\" not supported"}', "a\\n", "µ 16 °C", "\\\\x41"]
)
def test_lines_are_those_that_the_command_wrote(text: str) -> None:
    """guest.c sends tabs and ASCII as they are, and each byte of a backslash and of anything else as two digits."""
    sent = "".join(
        chr(byte) if byte == 9 or (32 <= byte < 127 and byte != 92) else f"\\x{byte:02x}" for byte in text.encode()
    )
    assert unescaped(sent) == text
