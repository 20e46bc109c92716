"""A run of the smoke preset with twenty timesteps."""

from dataclasses import replace

import pytest

import diffinf_lib as di


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    process = di.Process(num_train_timesteps=20, beta_end=0.3)
    sampling = di.configuration.SamplingConfig(count=3, steps=20)
    preset = replace(di.get_preset("smoke"), process=process, sampling=sampling)
    return di.open_run(preset, tmp_path_factory.mktemp("run"), progress=False)
