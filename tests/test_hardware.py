"""GPUs by name, from the command line and from drivers."""

import pytest

from ureca.errors import ConfigError
from ureca.hardware import ACCELERATORS, find_accelerator, parse_gpus


@pytest.mark.parametrize(
    ("text", "number", "name"),
    [
        ("8xA100-80GB", 8, "A100-80GB"),
        ("8 x a100 80gb", 8, "A100-80GB"),
        ("L4", 1, "L4"),
        ("2*L40S", 2, "L40S"),
        ("16xH200", 16, "H200"),
        ("4xNVIDIA H100-80GB", 4, "H100-80GB"),
        ("rtx6000", 1, "RTX6000-Ada"),
    ],
)
def test_parse_gpus_reads_number_and_kind(text, number, name):
    assert parse_gpus(text) == (number, ACCELERATORS[name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xA100", r"A100.*A100-80GB.*A100-40GB\?.*B200, H200"),
        ("8xH1000", "H1000.*H100"),
        ("0xL4", "number"),
        ("-1xL4", "number"),
        ("8x", "number"),
        ("", "number"),
        ("8", "number"),
    ],
)
def test_parse_gpus_invalid_text_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
    ],
)
def test_find_accelerator_maps_driver_names(driver, name):
    assert find_accelerator(driver) == ACCELERATORS[name]


@pytest.mark.parametrize("driver", ["NVIDIA L40", "NVIDIA A10", "NVIDIA GeForce RTX 4090 D", "Radeon VII", ""])
def test_find_accelerator_unknown_kind_returns_none(driver):
    assert find_accelerator(driver) is None


def test_accelerators_have_driver_names_and_sane_figures():
    from ureca.hardware import _DRIVER_NAMES

    assert {name for _, name in _DRIVER_NAMES} == set(ACCELERATORS)
    for name, accelerator in ACCELERATORS.items():
        assert accelerator.name == name
        assert 10 < accelerator.memory_gib < 300
        assert accelerator.bf16_flops is None or accelerator.bf16_flops > accelerator.fp32_flops
