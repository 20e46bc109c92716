"""Models of a hub: only what is read is downloaded, the token goes along, and without a network the earlier download serves.

A server of this machine answers as the hub does, and the hub's own client asks it and lays out its cache.
"""

import hashlib
import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import constants

from diffinf_lib.errors import DiffinfError
from diffinf_lib.loading import load_model

COMMIT = "a" * 40


class Hub:
    """A hub with one repository, tiny/model, which it gives to those who show its token."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def files(self):
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    @property
    def fetched(self):
        """Names of the files that were sent."""
        return sorted(
            {path.partition("/resolve/")[2][41:] for verb, path in self.asked if verb == "GET" and "/resolve/" in path}
        )

    def answer(self, path):
        """Status, type and content of an answer."""
        if not path.startswith(("/api/models/tiny/model", "/tiny/model/")):
            return 404, "application/json", b"{}"
        if "/resolve/" in path:
            file = self.folder / path.partition(f"/resolve/{COMMIT}/")[2]
            return (200, "application/octet-stream", file.read_bytes()) if file.is_file() else (404, "text/plain", b"")
        content = {"id": "tiny/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
        if "/tree/" in path:
            sizes = {name: (self.folder / name).stat().st_size for name in self.files}
            content = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
        return 200, "application/json", json.dumps(content).encode()

    def handler(hub):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = urlsplit(self.path).path
                hub.asked.append((self.command, path))
                known = self.headers.get("Authorization") == "Bearer hf_token"
                status, kind, content = hub.answer(path) if known else (401, "application/json", b"{}")
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        return Handler


@pytest.fixture
def hub(tmp_path):
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4,), norm_num_groups=2,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    folder = tmp_path / "repository"
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
    network.half().save_pretrained(folder / "unet", variant="fp16")
    for name in ("unet/diffusion_pytorch_model.bin", "safety/model.safetensors", "examples/data.json", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"much")
    hub = Hub(folder)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def loaded(hub, tmp_path, monkeypatch):
    """What a model's weights are and what was warned of, asked of this hub with a cache of its own; a line where refused."""
    here = f"http://127.0.0.1:{hub.server.server_port}"
    files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def load(name="tiny/model", *, token="hf_token", offline="0", hub_offline=False):
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setenv("DIFFINF_OFFLINE", offline)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", hub_offline)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return load_model(name).identity["weights"], [str(found.message) for found in caught]
            except DiffinfError as error:
                return str(error)

    return load


NEEDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


def test_only_what_is_read_is_downloaded_and_serves_without_a_network(hub, loaded):
    weights, notes = loaded(offline="")  # an empty variable forbids nothing
    assert hub.fetched == NEEDED and notes == []
    hub.asked.clear()
    assert loaded(offline="1") == loaded(hub_offline=True) == (weights, [])
    assert hub.asked == []
    hub.server.shutdown()
    hub.server.server_close()
    again, (note,) = loaded()
    assert again == weights and "the hub cannot be asked" in note and "downloaded before is taken" in note


def test_a_network_alone_and_a_variant_alone(hub, loaded):
    (hub.folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (hub.folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").rename(
        hub.folder / "diffusion_pytorch_model.fp16.safetensors"
    )
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        (hub.folder / name).rename(hub.folder / Path(name).name)
    loaded()
    parts = ["config.json", "diffusion_pytorch_model.fp16.safetensors", "model_index.json", "scheduler_config.json"]
    assert hub.fetched == parts


def test_what_a_hub_does_not_give_is_one_line(hub, loaded):
    assert "it answers 404); check the name" in loaded("tiny/other")
    assert "it answers 401" in loaded(token="hf_stolen")
    said = loaded(offline="1")
    assert "nothing of that name was downloaded before, and DIFFINF_OFFLINE=1 forbids" in said
    (hub.folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (hub.folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert "diffusion_pytorch_model.bin is pickle, which may run code" in loaded()
    assert hub.fetched == []  # nothing is brought that cannot be read
    hub.server.shutdown()
    hub.server.server_close()
    said = loaded()
    assert "the hub cannot be asked (" in said
