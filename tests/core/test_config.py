from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.core.budget import Budget
from autocompress.core.config import Config
from autocompress.core.space import SpaceTemplate
from autocompress.errors import ConfigError, InputError

FULL = """
[task]
name = "digits"
epochs = 3
[search]
sampler = "random"
trials = 7
seed = 4
objectives = ["accuracy", "latency"]
[compress]
importance = "l1"
[budget]
latency_ms = 1.5
max_size_bytes = 1000
max_energy_mj = 2.5
max_memory_bytes = 4000
[target]
name = "null"
threads = 2
batch_size = 3
hardware = "cortex-m7"
[space]
exclude = ["fc"]
[space.knobs]
"*/w_bits" = [4, 8]
"""


BUDGET = Budget(latency_ms=1.5, max_size_bytes=1000, max_energy_mj=2.5, max_memory_bytes=4000)


def read(folder: Path, text: str) -> Config:
    path = folder / "config.toml"
    path.write_text(text)
    return Config.read(path)


def test_everything_is_read_and_written_back(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    assert config.task == {"name": "digits", "epochs": 3}
    assert (config.sampler, config.trials, config.seed, config.target) == ("random", 7, 4, "null")
    assert config.objectives == ("accuracy", "latency")
    assert config.compress == {"importance": "l1"}
    assert config.budget == BUDGET
    assert config.hardware == "cortex-m7"
    assert (config.threads, config.batch_size) == (2, 3)
    assert isinstance(config.space, SpaceTemplate)
    assert config.space.exclude == ("fc",)
    assert read(tmp_path, config.to_toml()) == config


def test_what_is_not_set_has_its_default(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Config()


def test_energy_needs_a_device_and_nothing_else_does(tmp_path: Path) -> None:
    limited = Config().override(max_energy_mj=1.0)  # the device may still come by an option
    improved = read(tmp_path, '[search]\nobjectives = ["accuracy", "energy"]')
    for config in (limited, improved):
        with pytest.raises(InputError, match=r'name it \(hardware = "avx2-core".*--hardware'):
            config.check_hardware()
        config.override(hardware="cortex-m7").check_hardware()
    Config(objectives=("accuracy", "latency", "memory"), budget=Budget(1.0)).check_hardware()


def test_paths_of_spaces_are_relative_to_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, '[search]\nspace = "mine.toml"')
    assert config.space == str(tmp_path / "mine.toml")


def test_overrides_reach_the_budget_too(tmp_path: Path) -> None:
    config = read(tmp_path, FULL).override(trials=9, latency_ms=2.0, seed=None)
    assert (config.trials, config.seed) == (9, 4)
    assert config.budget == replace(BUDGET, latency_ms=2.0)
    config = config.override(max_energy_mj=1.0, max_memory_bytes=7, hardware="bit-fusion")
    assert config.budget == Budget(2.0, 1000, 1.0, 7)
    assert config.hardware == "bit-fusion"
    assert read(tmp_path, config.to_toml()) == config


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[serch]\ntrials = 3", r"line 1: .*'search'"),
        ("[search]\n\ntrails = 3", r"line 3: .*'trials'"),
        ("[search]\ntrials = ", r"config.toml: .*line 2, the last"),
        ("search = 3", r"line 1: \[search\] must be a table"),
        ("[task]\nepochs = 3", r"\[task\] needs name"),
        ("[task]\nname = 3", r"\[task\] needs name"),
        ("[search]\ntrials = 0", "at least 1, not 0"),
        ("[search]\ntrials = true", "at least 1, not True"),
        ('[search]\nseed = "a"', "at least 0, not 'a'"),
        ("[search]\nspace = 3", "space must be a name or a path"),
        ("[search]\nsampler = 3", "sampler must be a name"),
        ('[search]\nobjectives = "accuracy"', "Objectives are a list"),
        ("[budget]\nlatency_ms = -1", "above 0"),
        ("[budget]\nlatency_ms = nan", "above 0"),
        (f"[budget]\nmax_size_bytes = {10**400}", "above 0"),
        (f"[search]\ntrials = {10**400}", "at least 1"),
        ('[space.knobs]\n"*/w_bits" = [4, 99]', "from 2 to 32, not 99"),
        ('[search]\nspace = "ptq"\n[space.knobs]\n"*/w_bits" = [4]', "one of the two"),
        ("[budget]\nmax_memory_bytes = 0", "above 0: max_memory_bytes = 0"),
        ("[budget]\nmax_memory = 3", r"line 2: .*'max_memory_bytes'"),
        ("[target]\nhardware = 7", "hardware must be a name in quotes, not 7"),
        ('[target]\nhardvare = "phone"', r"line 2: .*'hardware'"),
        ('[space]\nknobs = 3', "table"),
        ('[space]\nexlude = ["a"]', r"line 2: .*'exclude'"),
        ('[compress]\nimportanc = "l1"', r"line 2: .*'importance'"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line_that_says_where(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted) as caught:
        read(tmp_path, text)
    assert "config.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "none.toml", tmp_path / "binary.toml"):
        with pytest.raises(ConfigError, match="must be readable"):
            Config.read(path)


def test_a_device_file_is_found_from_the_folder_of_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.toml"
    path.write_text('[task]\nname = "digits"\n[target]\nhardware = "mine.toml"\n')
    config = Config.read(path)
    assert config.hardware == str(tmp_path / "in" / "mine.toml")
    path.write_text(config.to_toml())  # as a run directory keeps it
    monkeypatch.chdir(tmp_path)
    assert Config.read(path).hardware == config.hardware
    assert Config(hardware="avx2-core").hardware == "avx2-core"


def test_portable_is_the_default_but_in_a_directory_of_an_older_version(tmp_path: Path) -> None:
    assert read(tmp_path, FULL).portable
    assert not Config.read(tmp_path / "config.toml", frozen=True).portable
    whole = read(tmp_path, FULL.replace("threads = 2", "threads = 2\nportable = false"))
    assert not whole.portable
    (tmp_path / "config.toml").write_text(replace(whole, portable=True).to_toml())
    assert Config.read(tmp_path / "config.toml", frozen=True).portable
    with pytest.raises(ConfigError, match="portable must be true or false"):
        read(tmp_path, FULL.replace("threads = 2", "portable = 1"))


def test_the_old_name_of_hardware_is_understood(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[task]\nname = "digits"\n[target]\ndevice = "mine.toml"\n')
    assert Config.read(path).hardware == str(tmp_path / "mine.toml")
