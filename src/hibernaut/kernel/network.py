# SPDX-License-Identifier: GPL-2.0-or-later
"""Network devices of the initial network namespace, and their addresses."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from hibernaut.kernel.reading import list_objects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["NetworkDevice", "network_device_of", "network_devices"]

IFF_UP = 1
"""include/uapi/linux/if.h."""
MAX_ADDRESSES = 256
MAX_HARDWARE_BYTES = 32
"""`MAX_ADDR_LEN` (include/linux/netdevice.h)."""


@dataclass(frozen=True)
class NetworkDevice:
    """A network device.

    Attributes:
        name: its name.
        up: whether it is up.
        hardware: hardware address, empty if it has none; None if it is not in the memory.
        addresses: IPv4 and IPv6 addresses with the length of their prefix; None if they are not in the memory.
    """

    name: str
    up: bool
    hardware: str | None
    addresses: tuple[str, ...] | None


def network_devices(kernel: Kernel) -> Iterator[Any]:
    """Yield each `struct net_device` of the initial network namespace."""
    return list_objects(kernel["init_net"].dev_base_head, "struct net_device", "dev_list")


def network_device_of(kernel: Kernel, device: Any) -> NetworkDevice:
    """Return a network device."""
    try:
        addresses: tuple[str, ...] | None = (*_ipv4(device), *_ipv6(kernel, device))
    except Exception:  # drgn's errors share no narrower base
        addresses = None
    return NetworkDevice(
        device.name.string_().decode("utf-8", "backslashreplace"),
        bool(device.flags.value_() & IFF_UP),
        _hardware(kernel, device),
        addresses,
    )


def _hardware(kernel: Kernel, device: Any) -> str | None:
    length, address = min(device.addr_len.value_(), MAX_HARDWARE_BYTES), device.dev_addr
    if not length or not address.value_():
        return ""
    try:
        return kernel.read(address.value_(), length, "hardware address").hex(":")
    except ValueError:
        return None


def _ipv4(device: Any) -> Iterator[str]:
    if not device.ip_ptr.value_():
        return
    address = device.ip_ptr.ifa_list
    for _ in range(MAX_ADDRESSES):
        if not address.value_():
            return
        local = IPv4Address(address.ifa_local.value_().to_bytes(4, "little"))  # a __be32
        yield f"{local}/{address.ifa_prefixlen.value_()}"
        address = address.ifa_next


def _ipv6(kernel: Kernel, device: Any) -> Iterator[str]:
    if not device.ip6_ptr.value_():
        return
    addresses = list_objects(device.ip6_ptr.addr_list, "struct inet6_ifaddr", "if_list")
    for _, address in zip(range(MAX_ADDRESSES), addresses, strict=False):
        raw = kernel.read(address.addr.address_of_().value_(), 16, "IPv6 address")
        yield f"{IPv6Address(raw)}/{address.prefix_len.value_()}"
