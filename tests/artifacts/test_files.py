import os
import resource
import stat
import warnings

import numpy as np
import pytest
import torch

from diffinf_lib.artifacts import (
    atomic_write,
    ensure_writable,
    read_arrays,
    read_json,
    read_part,
    read_sealed,
    read_tensor_metadata,
    read_tensors,
    tensor_digest,
    write_arrays,
    write_json,
    write_part,
    write_sealed,
    write_tensors,
)
from diffinf_lib.configuration import UNetConfig
from diffinf_lib.errors import ArtifactError, ConfigurationError
from diffinf_lib.loading import save_model
from diffinf_lib.models import build_model


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3, dtype=torch.int64)}
    write_tensors(tmp_path / "x.safetensors", tensors, metadata={"step": 3})
    back = read_tensors(tmp_path / "x.safetensors")
    assert {name: tensor.tolist() for name, tensor in back.items()} == {n: t.tolist() for n, t in tensors.items()}
    assert read_tensor_metadata(tmp_path / "x.safetensors") == {"step": 3}


def test_those_who_may_read_other_files_may_read_tensors(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    save_model(build_model(UNetConfig()), tmp_path)
    (tmp_path / "plain").touch()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1, files


def fail_while_writing(path):
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(RuntimeError):
        fail_while_writing(path)
    assert read_json(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


@pytest.mark.parametrize("kind", ["json", "npz", "safetensors"])
def test_without_room_a_write_is_refused_in_one_line_and_leaves_nothing(tmp_path, kind):
    path, numbers = tmp_path / f"x.{kind}", torch.arange(9_999.0)
    write = {
        "json": lambda: write_json(path, numbers.tolist()),
        "npz": lambda: write_arrays(path, x=numbers.numpy()),
        "safetensors": lambda: write_tensors(path, {"x": numbers}),
    }[kind]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(ArtifactError, match=rf"x\.{kind}: cannot be written \(File too large\); make room"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_safetensors_are_refused(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"x\.safetensors: damaged"):
        read_tensors(path)


def test_truncated_npz_and_json_are_refused(tmp_path):
    write_arrays(tmp_path / "x.npz", a=np.arange(1000.0))
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-30])
    with pytest.raises(ArtifactError, match="damaged"):
        read_arrays(tmp_path / "x.npz")
    (tmp_path / "x.json").write_text('{"a": 1')
    with pytest.raises(ArtifactError, match="damaged"):
        read_json(tmp_path / "x.json")


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_whatever_bit_of_a_part_is_flipped_it_is_not_gone_on_with(tmp_path):
    path, tensors, told = tmp_path / "x.safetensors", {"a": torch.arange(3.0), "b": torch.zeros(())}, {"done": 7}
    write_part(path, tensors, {"seed": (0, 1)}, told)
    content = path.read_bytes()
    back = read_part(path, {"seed": [0, 1]}, "again")
    assert back and back[1] == told and all(torch.equal(back[0][name], tensors[name]) for name in tensors)
    believed = set()
    for place in range(len(content)):
        path.write_bytes(flipped(content, place))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read_part(path, {"seed": [0, 1]}, "again")
        if found is None:
            assert f"{path}: damaged or of something else; again" in str(caught[0].message) and not path.exists()
        else:
            believed.add(content[place])
            assert found[1] == told and all(torch.equal(found[0][name], tensors[name]) for name in tensors)
    assert believed <= {ord(" ")}, "what pads a header says nothing"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="of something else"):
        assert read_part(path, {"seed": [0, 2]}, "again") is None
    assert read_part(path, {"seed": [0, 1]}, "again") is None


def test_parts_of_before_are_believed_if_what_they_tell_is_so(tmp_path):
    path, tensors = tmp_path / "x.safetensors", {"a": torch.arange(3.0)}
    for metadata in ({"content": tensor_digest(tensors["a"])}, {"seed": 3}):
        write_tensors(path, tensors, metadata=metadata)
        back = read_part(path, {"seed": 3}, "again")
        assert back and torch.equal(back[0]["a"], tensors["a"]) and back[1] == {}
    for metadata in ({"content": tensor_digest(tensors["a"] + 1)}, {"seed": 4}, None):
        write_tensors(path, tensors, metadata=metadata)
        with pytest.warns(UserWarning, match="damaged or of something else; again"):
            assert read_part(path, {"seed": 3}, "again") is None


def test_whatever_bit_of_a_sealed_record_is_flipped_nothing_else_is_read(tmp_path):
    path, value = tmp_path / "x.json", {"rows": 12, "how": {"together": 1}, "name": "α", 4: [1.5, None]}
    write_sealed(path, value)
    content, said = path.read_bytes(), {"rows": 12, "how": {"together": 1}, "name": "α", "4": [1.5, None]}
    assert read_sealed(path) == said and read_sealed(tmp_path / "y.json") is None
    for place in range(len(content)):
        path.write_bytes(flipped(content, place))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read_sealed(path)
        assert found is not None or "x.json: damaged" in str(caught[0].message)
        assert found is None or found.items() >= said.items()  # the name of the digest itself says nothing
    for damaged in ("[]", "", content[:-20].decode()):
        path.write_text(damaged)
        with pytest.warns(UserWarning, match=r"x\.json: damaged"):
            assert read_sealed(path) is None


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ArtifactError):
        read_arrays(tmp_path / "x.npz")


def test_equal_arrays_give_equal_bytes(tmp_path):
    for name in ("x.npz", "y.npz"):
        write_arrays(tmp_path / name, a=np.arange(5), b=np.eye(2))
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()


def test_digest_sees_values_shape_and_type():
    zeros = torch.zeros(4)
    variants = [zeros, zeros.double(), zeros.reshape(2, 2), torch.ones(4)]
    assert len({tensor_digest(tensor) for tensor in variants}) == len(variants)
    assert tensor_digest(zeros) == tensor_digest(zeros.clone())


def test_a_file_in_the_way_of_a_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write there"):
        ensure_writable(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    with pytest.raises(ConfigurationError, match="cannot write there"):
        ensure_writable(tmp_path)
