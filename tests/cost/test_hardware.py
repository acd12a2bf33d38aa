import dataclasses
import math
from pathlib import Path

import pytest

from autocompress.cost.hardware import HardwareSpec, hardware_names, read_hardware
from autocompress.errors import ConfigError, InputError

GOOD = """\
name = "chip"
title = "A chip"
bytes_per_s = { value = 1e9, source = "s" }
pj_per_byte = { value = 100, source = "s" }
on_chip_bytes = { value = 1000, source = "s" }
on_chip_bytes_per_s = { value = 2e9, source = "s" }
on_chip_pj_per_byte = { value = 1, source = "s" }
elements_per_s = { value = 1e9, source = "s" }
overhead_us = { value = 1, source = "s" }
[macs_per_s]
w32a32 = { value = 1e9, source = "s" }
w8a8 = { value = 4e9, source = "s" }
[pj_per_mac]
w32a32 = { value = 20, source = "s" }
[pj_per_mac.w8a8]
value = 2
source = "a formula"
"""


def read(tmp_path: Path, text: str) -> HardwareSpec:
    path = tmp_path / "chip.toml"
    path.write_text(text, encoding="utf-8")
    return read_hardware(path)


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    device = read(tmp_path, GOOD)
    assert (device.name, device.on_chip_bytes, device.ram_bytes) == ("chip", 1000, None)
    assert device.static_mw == 0
    assert device.sources["pj_per_mac.w8a8"] == "a formula"
    assert read_hardware(str(tmp_path / "chip.toml")) == device


@pytest.mark.parametrize("name", hardware_names())
def test_what_ships_is_whole_and_every_figure_has_a_source(name: str) -> None:
    device = read_hardware(name)
    assert device.name == name
    figures = {key for key, value in device._figures() if not (key == "static_mw" and value == 0)}
    assert figures == set(device.sources)
    assert all(len(source) > 20 for source in device.sources.values())
    assert set(device.macs_per_s) == set(device.pj_per_mac)


def test_what_ships() -> None:
    assert hardware_names() == ("avx2-core", "bit-fusion", "cortex-a76", "cortex-m7")
    assert read_hardware("cortex-m7").ram_bytes == 320 * 1024


@pytest.mark.parametrize("name", hardware_names())
def test_fewer_bits_are_never_slower_and_never_cost_more(name: str) -> None:
    device = read_hardware(name)
    for w in range(1, 33):
        for a in range(1, 33):
            for wider in ((min(w + 1, 32), a), (w, min(a + 1, 32))):
                assert device.rate(w, a) >= device.rate(*wider)
                assert device.mac_pj(w, a) <= device.mac_pj(*wider)


def test_the_next_wider_pair_runs_what_is_not_listed() -> None:
    device = read_hardware("bit-fusion")
    assert device.rate(3, 8) == device.rate(4, 8) == 2 * device.rate(8, 8)
    assert device.rate(5, 7) == device.rate(8, 8)
    assert device.rate(4, 32) == device.rate(16, 8) == device.rate(32, 32)
    assert device.mac_pj(2, 8) == pytest.approx(device.mac_pj(8, 8) / 4, rel=1e-3)
    with pytest.raises(InputError, match="up to 32 bits, not 64 × 8"):
        device.rate(64, 8)


def test_a_pair_that_is_listed_runs_as_listed() -> None:
    slow = dataclasses.replace(
        read_hardware("avx2-core"), macs_per_s={(4, 8): 1e9, (8, 8): 5e9, (32, 32): 2e9}
    )
    assert slow.rate(4, 8) == 1e9
    assert slow.rate(5, 8) == 5e9


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "bytes_per_s = { value = 1e9",
            "bytes_per_s = { value = -1",
            "line 3: bytes_per_s must be",
        ),
        ("overhead_us = { value = 1", "overhead_us = { value = 0", "line 9: .* number, not 0"),
        ("pj_per_byte = { value = 100", "pj_per_byte = { value = nan", "line 4: .*, not nan"),
        ("value = 20", "value = inf", "line 14: pj_per_mac.w32a32 must be .*, not inf"),
        ("value = 4e9", 'value = "fast"', "line 12: macs_per_s.w8a8 must be .*, not 'fast'"),
        ("value = 4e9", "value = true", "line 12: .*, not True"),
        ("value = 4e9, source", "source", "line 12: macs_per_s.w8a8 must be .*, not None"),
        ("value = 1000", "value = 10.5", "positive whole number, not 10.5"),
        ("value = 2\n", "value = -2\n", "line 15: pj_per_mac.w8a8"),
        ('4e9, source = "s"', "4e9", "line 12: macs_per_s.w8a8 needs a source, not None"),
        ('4e9, source = "s"', '4e9, source = " "', "line 12: .* needs a source"),
        ('4e9, source = "s"', '4e9, sauce = "s"', "line 12: .*'sauce'. Did you mean 'source'"),
        ("overhead_us", "overhead_ms", "line 9: .*Did you mean 'overhead_us'"),
        ('{ value = 4e9, source = "s" }', "4e9", "line 12: .* must be w8a8 = { value"),
        ("w8a8 = {", "w8 = {", "line 12: .*like w8a8, not 'w8'"),
        ("w8a8 = {", "w08a8 = {", "not 'w08a8'"),
        ("w8a8 = {", "w33a8 = {", "bits from 1 to 32"),
        ("w32a32 = { value = 1e9", "w16a16 = { value = 1e9", "macs_per_s .* must have w32a32"),
        ("w32a32 = { value = 20", "w16a16 = { value = 20", "pj_per_mac .* must have w32a32"),
        ("[macs_per_s]", "[macs]", "line 10: .*'macs'. Did you mean 'macs_per_s'"),
        ('title = "A chip"\n', "", 'needs title = "…", not None'),
        ('name = "chip"', "name = 3", "line 1: a device needs name"),
        ('elements_per_s = { value = 1e9, source = "s" }\n', "", "needs elements_per_s, .*Add"),
        ("value = 2e9", "value = 1", "on_chip_bytes_per_s .* at least its bytes_per_s"),
        ("on_chip_pj_per_byte = { value = 1,", "on_chip_pj_per_byte = { value = 101,", "at most"),
        ("[macs_per_s]", "[macs_per_s", "must be valid TOML: .*line 10"),
    ],
)
def test_bad_files_get_one_error_that_names_the_place(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert "chip.toml" in str(caught.value)


def test_a_section_that_is_no_table(tmp_path: Path) -> None:
    head = GOOD.split("[macs_per_s]")[0]
    with pytest.raises(ConfigError, match=r"line 10: \[macs_per_s\] must be a table, not 3"):
        read(tmp_path, f"{head}macs_per_s = 3\n")
    with pytest.raises(ConfigError, match="it has none"):
        read(tmp_path, head)


def test_unknown_devices_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown device 'cortexa76'. Did you mean 'cortex-a76'"):
        read_hardware("cortexa76")
    with pytest.raises(ConfigError, match="must be readable"):
        read_hardware(tmp_path / "none.toml")


def test_a_device_made_in_python_is_checked_and_frozen() -> None:
    device = read_hardware("cortex-m7")
    for change in ({"overhead_us": -1.0}, {"bytes_per_s": math.nan}, {"static_mw": -1.0}):
        with pytest.raises(InputError, match=next(iter(change))):
            dataclasses.replace(device, **change)
    with pytest.raises(TypeError):
        device.macs_per_s[8, 8] = 1  # type: ignore[index]
