"""Devices: hardware that is not at hand, as published figures in TOML files.

A file names every figure with its source::

    name = "my-chip"
    title = "What it is, in a few words."
    bytes_per_s = { value = 12e9, source = "where this is published, or the formula" }
    # likewise the other fields of HardwareSpec
    [macs_per_s]
    w8a8 = { value = 256e9, source = "…" }
    w32a32 = { value = 1e9, source = "how it runs floating point" }
    [pj_per_mac]
    w8a8 = { value = 0.5, source = "…" }
    w32a32 = { value = 20, source = "…" }

Where lines grow long, ``[macs_per_s.w8a8]`` with two lines below says the same.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autocompress.core.toml import check_keys, line_of, read_toml
from autocompress.errors import ConfigError, InputError, unknown

__all__ = ["HardwareSpec", "hardware_names", "read_hardware"]

Pair = tuple[int, int]

_TABLES = ("macs_per_s", "pj_per_mac")
_OPTIONAL = ("static_mw", "ram_bytes")
_WHOLE = ("on_chip_bytes", "ram_bytes")


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    """Published figures of one piece of hardware, each with its source.

    ``macs_per_s``: peak multiply-adds a second by (weight bits, activation bits); ``pj_per_mac``:
    picojoules of one. Both have (32, 32). ``bytes_per_s`` and ``pj_per_byte``: of the external
    memory; ``on_chip_bytes``, ``on_chip_bytes_per_s``, ``on_chip_pj_per_byte``: of the memory on
    the chip, which is no slower and costs no more. ``elements_per_s``: element-wise results;
    ``overhead_us``: microseconds to start an operator; ``static_mw``: power without work, none
    where it is not published; ``ram_bytes``: what activations must fit in, if anything. ``sources``
    go by the figure's key, "macs_per_s.w8a8". Raises InputError for a figure that cannot be.
    """

    name: str
    title: str
    macs_per_s: Mapping[Pair, float]
    pj_per_mac: Mapping[Pair, float]
    bytes_per_s: float
    pj_per_byte: float
    on_chip_bytes: int
    on_chip_bytes_per_s: float
    on_chip_pj_per_byte: float
    elements_per_s: float
    overhead_us: float
    static_mw: float = 0.0
    ram_bytes: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for key, value in self._figures():
            fault = _fault(key, value)
            if fault and not (key == "static_mw" and value == 0):
                raise InputError(f"{key} of a device {fault}.")
        for name in _TABLES:
            if (32, 32) not in getattr(self, name):
                raise InputError(
                    f"{name} of a device must have w32a32, so that float layers have a cost; it "
                    f"has {', '.join(map(_written, getattr(self, name))) or 'none'}. Say how it "
                    "runs floating point: natively, emulated or on its host."
                )
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        if self.on_chip_bytes_per_s < self.bytes_per_s:
            raise InputError(
                "on_chip_bytes_per_s of a device must be at least its bytes_per_s "
                f"({self.bytes_per_s:g}), not {self.on_chip_bytes_per_s:g}."
            )
        if self.on_chip_pj_per_byte > self.pj_per_byte:
            raise InputError(
                "on_chip_pj_per_byte of a device must be at most its pj_per_byte "
                f"({self.pj_per_byte:g}), not {self.on_chip_pj_per_byte:g}."
            )
        object.__setattr__(self, "sources", MappingProxyType(dict(self.sources)))

    def _figures(self) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for name in _TABLES:
            found += [(f"{name}.{_written(p)}", v) for p, v in getattr(self, name).items()]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in ("name", "title", "sources", *_TABLES) and value is not None:
                found.append((item.name, value))
        return found

    def rate(self, w_bits: int, a_bits: int) -> float:
        """Return peak multiply-adds a second at these widths, or the next wider ones listed.

        The next wider is the listed pair at least as wide in both whose product is least, with
        the narrower weights of two. Raises InputError above 32 bits.
        """
        return self.macs_per_s[_wider(self.macs_per_s, w_bits, a_bits)]

    def mac_pj(self, w_bits: int, a_bits: int) -> float:
        """Return the picojoules of a multiply-add at these widths; the rest is as in rate."""
        return self.pj_per_mac[_wider(self.pj_per_mac, w_bits, a_bits)]


def _wider(listed: Mapping[Pair, float], w_bits: int, a_bits: int) -> Pair:
    if (w_bits, a_bits) in listed:
        return w_bits, a_bits
    able = [(w, a) for w, a in listed if w >= w_bits and a >= a_bits]
    if not able:
        raise InputError(f"A device computes with up to 32 bits, not {w_bits} × {a_bits}.")
    return min(able, key=lambda pair: (pair[0] * pair[1], pair))


def _written(pair: Pair) -> str:
    return f"w{pair[0]}a{pair[1]}"


def _fault(key: str, value: Any) -> str:
    """Return what is wrong with a figure, or nothing."""
    whole = key in _WHOLE
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"must be a positive number, not {value!r}"
    if not math.isfinite(value) or value <= 0 or (whole and value != int(value)):
        return f"must be a positive {'whole ' if whole else ''}number, not {value:g}"
    return ""


def hardware_names() -> tuple[str, ...]:
    """Return the names of the devices that come with autocompress, sorted."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in _folder().glob("*.toml")))


def _folder() -> Path:
    return Path(str(files("autocompress.cost"))) / "devices"


def read_hardware(name: str | Path) -> HardwareSpec:
    """Return a device by its name or from a TOML file; raise ConfigError naming file and line."""
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in hardware_names():
            raise ConfigError(
                f"{unknown('device', str(name), hardware_names())} "
                "A device of your own is a path that ends in .toml."
            )
        path = _folder() / f"{name}.toml"
    table, text = read_toml(path)
    texts = ("name", "title")
    singles = [f.name for f in fields(HardwareSpec) if f.name not in (*texts, *_TABLES, "sources")]
    check_keys(table, (*texts, *singles, *_TABLES), text, path)
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key in texts:
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise ConfigError(
                f'{_at(path, text, key)}: a device needs {key} = "…", not {table.get(key)!r}.'
            )
        given[key] = table[key]
    for key in singles:
        if key in table:
            given[key] = _figure(table[key], key, text, path, "", sources)
        elif key not in _OPTIONAL:
            raise ConfigError(
                f"{path}: a device needs {key}, which is missing. Add {_EXAMPLE % key}."
            )
    for section in _TABLES:
        rows = table.get(section, {})
        if not isinstance(rows, dict):
            raise ConfigError(
                f"{_at(path, text, section)}: [{section}] must be a table, not {rows!r}."
            )
        given[section] = {}
        for key, entry in rows.items():
            match = re.fullmatch(r"w(\d{1,2})a(\d{1,2})", key)
            pair = (int(match[1]), int(match[2])) if match else (0, 0)
            if not (1 <= pair[0] <= 32 and 1 <= pair[1] <= 32) or _written(pair) != key:
                raise ConfigError(
                    f"{_at(path, text, key, section)}: a key in [{section}] names weight and "
                    f"activation bits from 1 to 32, like w8a8, not '{key}'."
                )
            given[section][pair] = _figure(entry, key, text, path, section, sources)
    try:
        return HardwareSpec(**given, sources=sources)
    except InputError as error:
        raise ConfigError(f"{path}: {error}") from error


_EXAMPLE = '%s = { value = …, source = "…" }'


def _at(path: Path, text: str, key: str, section: str = "") -> str:
    line = line_of(text, key, section) or line_of(text, f"{section}.{key}".removeprefix("."))
    return f"{path}, line {line}" if line else str(path)


def _figure(
    entry: Any, key: str, text: str, path: Path, section: str, sources: dict[str, str]
) -> Any:
    """Return the value of one figure and note its source."""
    where = _at(path, text, key, section)
    label = f"{section}.{key}".removeprefix(".")
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {label} must be {_EXAMPLE % key}, not {entry!r}.")
    for part in entry:
        if part not in ("value", "source"):
            raise ConfigError(f"{where}: {unknown(f'key of {label}', part, ('value', 'source'))}")
    source = entry.get("source")
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(
            f"{where}: {label} needs a source, not {source!r}. Say where the figure is published "
            "or what it follows from."
        )
    fault = _fault(label, entry.get("value"))
    if fault:
        raise ConfigError(f"{where}: {label} {fault}.")
    sources[label] = source
    return int(entry["value"]) if label in _WHOLE else float(entry["value"])
