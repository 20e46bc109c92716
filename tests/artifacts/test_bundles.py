import numpy as np
import pytest
from damage import HARMS

import diffinf_lib as di
from diffinf_lib.artifacts import load_benchmark, load_bundle, read_json, write_bundle, write_json
from diffinf_lib.errors import ArtifactError, ConfigurationError


def test_a_bundle_comes_back_with_its_provenance(tmp_path):
    write_bundle("one", {"x": np.arange(3)}, {"lds": 0.5}, {"seed": 0}, root=tmp_path)
    bundle = load_bundle("one", root=tmp_path)
    assert bundle.arrays["x"].tolist() == [0, 1, 2]
    assert bundle.metrics == {"lds": 0.5}
    assert bundle.manifest["configuration_digest"][:12] in bundle.provenance


@pytest.mark.parametrize("name", ["arrays.npz", "metrics.json", "manifest.json"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_named(tmp_path, name, harm):
    one, other = (write_bundle(key, {"x": np.arange(3) + len(key)}, {"lds": len(key)}, {"seed": key}, root=tmp_path)
                  for key in ("one", "other"))  # fmt: skip
    whole = (one / name).read_bytes()
    for content in HARMS[harm](whole, (other / name).read_bytes()):
        (one / name).write_bytes(content)
        # a manifest that is whole tells of other arrays: which of both is at fault nobody can say
        named = "arrays.npz: not the file" if (name, harm) == ("manifest.json", "swapped") else rf"one/{name}: "
        with pytest.raises(ArtifactError, match=f"{named}.*make the bundle again$"):
            load_bundle("one", root=tmp_path)
    (one / name).write_bytes(whole)
    assert load_bundle("one", root=tmp_path).metrics == {"lds": 3}


def test_a_bundle_of_before_its_manifest_held_a_digest_is_read(tmp_path):
    folder = write_bundle("one", {"x": np.arange(3)}, {}, {"seed": 0}, root=tmp_path)
    told = read_json(folder / "manifest.json")
    assert told.pop("digest")
    write_json(folder / "manifest.json", told)
    assert load_bundle("one", root=tmp_path).manifest == told


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    write_bundle("one", {}, {}, {}, root=tmp_path)
    with pytest.raises(ArtifactError, match="there are: one"):
        load_bundle("two", root=tmp_path)


def test_a_large_bundle_is_refused(tmp_path):
    noise = np.random.default_rng(0).random(200_000)
    with pytest.raises(ConfigurationError, match="bundle big"):
        write_bundle("big", {"noise": noise}, {}, {}, root=tmp_path)


def test_a_benchmark_is_read_by_name_and_an_unknown_one_lists_the_others(tmp_path):
    write_json(tmp_path / "fit.json", {"results": {"ours": 1}})
    assert load_benchmark("fit", root=tmp_path)["results"] == {"ours": 1}
    with pytest.raises(ArtifactError, match="benchmark='fits': none of that name; there are: fit"):
        load_benchmark("fits", root=tmp_path)


def test_a_bundle_does_not_tell_where_a_folder_lay(tmp_path):
    preset = di.with_options(di.get_preset("smoke"), {"dataset.name": f"folder:{tmp_path}/somebody/photos/"})
    write_bundle("b", {"a": np.zeros(1)}, {}, {"preset": preset, "runs": [preset]}, root=tmp_path)
    manifest = (tmp_path / "b" / "manifest.json").read_text()
    assert manifest.count('"folder:photos"') == 2 and "somebody" not in manifest
