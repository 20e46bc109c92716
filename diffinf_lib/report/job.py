"""Job: from a model, a folder of images and images to explain to a page for people, in stages that can be killed."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts import (
    atomic_write,
    check_same,
    ensure_writable,
    environment,
    file_digest,
    is_finished,
    json_digest,
    plain,
    read_json,
    read_tensors,
    stage,
    write_json,
    write_tensors,
)  # fmt: skip
from diffinf_lib.artifacts.manifest import MANIFEST
from diffinf_lib.artifacts.paths import spelt_out
from diffinf_lib.autoencoder import Autoencoder
from diffinf_lib.configuration import REPORT_DAMPING, CurvatureConfig, DrawConfig, MeasurementConfig, MeasurementName
from diffinf_lib.curvature import Curvature, fit_curvature
from diffinf_lib.data import ImageSet, read_image_folder
from diffinf_lib.data.files import NO_CLASS
from diffinf_lib.devices import usable_device
from diffinf_lib.diffusion import Denoiser, require_denoiser
from diffinf_lib.errors import ArtifactError, DataError, first_few, require
from diffinf_lib.loading import read_model
from diffinf_lib.pictures import picture
from diffinf_lib.report.encoding import autoencoder_of, decoded, encoded, image_shape
from diffinf_lib.report.findings import Likeness, compare, find_copies, find_label_doubts, find_unusual
from diffinf_lib.report.options import SAMPLER_STEPS, ReportOptions, options_for
from diffinf_lib.report.page import render
from diffinf_lib.report.plan import JobPlan, Sizes, as_record, in_words
from diffinf_lib.report.result import Findings, Named, Report, pixel_distances
from diffinf_lib.report.scores import Stores, score_training_images
from diffinf_lib.report.sources import Source, check_sources
from diffinf_lib.report.summary import in_words as made_in_words
from diffinf_lib.report.tables import write_tables
from diffinf_lib.report.text import counted
from diffinf_lib.runs.model import as_queries
from diffinf_lib.sampling import sample, sample_seeds
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import Images, ImageShape, PerExample

CONFIG = "config.json"
FILES = ("index.html", "scores.csv", "scores.npz", "findings.csv")
CHECKPOINT_SECONDS = 10.0


@own_settings
def attribute(
    model: Source | Denoiser,
    images: Source | Sequence[Source],
    queries: Source | Sequence[Source] | None = None,
    out: Source = "report",
    *,
    generate: int = 0,
    seed: int = 0,
    damping: float | Sequence[float] = REPORT_DAMPING,
    draws: DrawConfig | int | None = None,
    curvature: CurvatureConfig | None = None,
    measurement: MeasurementConfig | MeasurementName | None = None,
    image_size: int | None = None,
    autoencoder: Source | None = None,
    device: str | None = None,
    force: bool = False,
    progress: bool = False,
) -> Report:
    """Explain images by the training images behind them: scores, what may be wrong with the images, and a page for people.

    Everything is checked before any work, and planned: time, memory and disk are said if `progress` is on. A killed call goes
    on with the same files and ends with the same scores. What it leaves in `out`: `index.html`, a page that opens from
    disk; `scores.csv` and `scores.npz`, every score by file name; `findings.csv`; `manifest.json`, what was run; and below
    them the stages, from which the next call with other queries and `force` takes the curvature and the training gradients.

    A latent model gets the latents of the images, encoded once by the autoencoder of its pipeline, or by the one that is
    given; the page shows pixels, of which copies are found and distances told too.

    Args:
        model: a pipeline folder, a network folder, a hub id, or a model from `load_model`.
        images: folder of the images that the model was trained on, or a list of files; all of them are training images.
            Subfolders are classes, counted in plain order of their names (1, 10, 2), as torchvision and datasets do; the page
            of a network that is told classes states the order.
        queries: folder, file or files to explain.
        out: folder of the report.
        generate: explain so many samples of the model instead of files.
        seed: of all draws, and of generated images.
        damping: λ, one or several; the page shows the first.
        draws: of each training gradient; default 64 shared draws in proportion to the signal. A number takes as many.
        curvature: what is fitted; default EK-FAC of GGN^model, from draws as the number of images allows.
        measurement: what of the queries is attributed; default the loss.
        image_size: side in pixels to which images are brought; default the network's own, for a latent model times the
            factor of its autoencoder.
        autoencoder: folder or hub id of an `AutoencoderKL`, or of a pipeline with one, for a latent model that has none beside
            it or was given as it is; default the one in its pipeline.
        device: default a GPU where there is one.
        force: take other options for a folder that holds a report.
        progress: print the plan and show progress with the time left.

    Returns:
        what the page shows, as `Report`.

    Raises:
        ConfigurationError: an option that cannot be used, images that do not fit the network, or too little disk.
        DataError: a folder or file that is missing or cannot be read.
        ArtifactError: `out` holds a report of other options, and `force` is not given; or a model that cannot be read.
    """
    asked, folder = check_sources(model, images, queries, generate, out, autoencoder), spelt_out(out)
    device, source = usable_device(device), model if isinstance(model, Source) else None
    network = (read_model(model) if isinstance(model, Source) else require_denoiser(model)).to(device)
    encoder = autoencoder_of(network, source, autoencoder, device)
    shape = image_shape(network, image_size, encoder)
    train = _read(images, shape)
    options = options_for(
        len(train),
        damping=damping,
        draws=draws,
        curvature=curvature,
        measurement=measurement,
        seed=seed,
        generate=generate,
    )
    require(len(train) > 1, f"images: there is one alone, {train.names[0]}; give two or more, to compare", DataError)
    named = None if asked is None else _read(asked, shape)
    named = None if named is None else _of_same_classes(named, train)
    _check_classes(network, train, named)
    folder = ensure_writable(folder)
    job = _Job(network, encoder, shape, train, named, options, folder, device, force, progress)
    with FileLock(folder / f".{CONFIG}.lock"):
        return job.run(described=source or type(network.network).__name__, images=images)


def _read(source: Source | Sequence[Source], shape: ImageShape) -> Named:
    found = read_image_folder(source, image_size=shape[1], channels=shape[0])
    return Named(found.images, found.images.names or (), found.class_names, found.notes)


def _of_same_classes(queries: Named, train: Named) -> Named:
    """Queries in folders that are named as the classes of the training images are of these classes, others of none."""
    names = [queries.class_names[label] if label >= 0 else "" for label in queries.images.labels.tolist()]
    known = {name: label for label, name in enumerate(train.class_names)}
    labels = torch.tensor([known.get(name, -1) for name in names])
    return replace(queries, images=replace(queries.images, labels=labels), class_names=train.class_names)


def _check_classes(model: Denoiser, train: Named, queries: Named | None) -> None:
    """A network that is told the class of each image needs one for each."""
    if not model.condition_names:
        return
    require(queries is not None, "generate: the network is told the class of each image; give files to explain, in folders "
            "named as the classes of the training images")  # fmt: skip
    for what, named in (("images", train), ("queries", queries)):
        assert named is not None
        missing = [name for name, label in zip(named.names, named.images.labels.tolist(), strict=True) if label < 0]
        require(not missing, f"{what}: the network is told the class of each image, {first_few(missing)} have none; give them "
                "in folders named as the classes of the training images", DataError)  # fmt: skip
    require(train.class_names != (NO_CLASS,), "images: the network is told the class of each image, and the folder has no "
            "class folders; give CLASS/*", DataError)  # fmt: skip
    known = {model.classes, model.classes - (model.no_class is not None)}
    require(len(train.class_names) in known, f"images: {len(train.class_names)} classes (folders), the network "
            f"knows {model.classes}; give the images that it was trained on", DataError)  # fmt: skip


@dataclass
class _Job:
    """One report in the making; `shape` is that of the images in pixels."""

    model: Denoiser
    autoencoder: Autoencoder | None
    shape: ImageShape
    train: Named
    queries: Named | None
    options: ReportOptions
    folder: Path
    device: str
    force: bool
    progress: bool

    def run(self, described: object, images: object) -> Report:
        """All stages, and the files for people."""
        for note in dict.fromkeys((*self.train.notes, *(self.queries.notes if self.queries else ()))):
            self.say(f"note: {note}")
        record, sizes, planned = self.begun()
        if self.queries is None:
            self.queries = self.generated(sizes)
        report = self.report(record, sizes)
        made = self.made(record, sizes, planned)
        latent = None if self.autoencoder is None else self.autoencoder.latent_shape(self.shape)
        words = made_in_words(made, self.options, self.shape, latent, bool(self.model.condition_names))
        made["summary"] = {"model": str(described), "training images": str(images), **words}
        report.made.update(made)
        said = write_tables(report, self.folder)
        with atomic_write(report.page) as temporary:
            temporary.write_text(render(report), encoding="utf-8")
        files = {name: file_digest(self.folder / name) for name in FILES}
        write_json(self.folder / MANIFEST, made | said | {"files": files})
        return report

    def say(self, text: str) -> None:
        """Tell the user, if wanted."""
        if self.progress:
            print(text, file=sys.stderr, flush=True)

    # --- what was asked for, and what is there already

    def record(self) -> dict[str, Any]:
        """Everything that scores depend on."""
        asked = None if self.queries is None else _counted_digest(self.queries.images)
        model, images = _short(self.model), _counted_digest(self.train.images)
        found = {"model": model, "images": images, "queries": asked, "options": self.options, **self.coded}
        return plain(found)  # type: ignore[no-any-return]

    @cached_property
    def coded(self) -> dict[str, str]:
        """The autoencoder that scores depend on; nothing for pixels."""
        return {} if self.autoencoder is None else {"autoencoder": self.autoencoder.digest[:16]}

    def begun(self) -> tuple[dict[str, Any], Sizes, dict[str, float]]:
        """Compare with what is in the folder, fit sizes to the machine, tell the plan, and write down what is to be made."""
        record, path = self.record(), self.folder / CONFIG
        found = read_json(path) if path.exists() else None
        ours = found is None or (isinstance(found, dict) and {"asked", "sizes", "planned"} <= found.keys())
        require(ours, f"out={self.folder}: its {CONFIG} is not a report's; give another folder", ArtifactError)
        others = [name for name in (*FILES, MANIFEST) if found is None and (self.folder / name).exists()]
        require(not others, f"out={self.folder}: it holds {first_few(others)} of something else; give another folder",
                ArtifactError)  # fmt: skip
        before = record if found is None else found["asked"]
        changed = before != record
        if changed and not self.force:
            check_same(before, record, self.folder)
        kept = found if _base(before) == _base(record) else None
        plan = JobPlan(
            self.model, self.shape, len(self.train), self._query_count(), self.options, self.device, self.autoencoder
        )
        sizes = self._sizes(plan, kept, changed)
        if changed:
            self._discard(before, record)
        planned = found["planned"] if found is not None and not changed else {}
        if self.progress and not (self.folder / "scores" / "manifest.json").exists():
            estimate = plan.estimate(sizes)
            self.say(f"{counted(len(self.train), 'training image')}, {counted(self._query_count(), 'query', 'queries')}: "
                     f"{in_words(estimate)}\n{estimate}")  # fmt: skip
            planned = {stage.name: round(stage.seconds, 3) for stage in estimate.stages}
        write_json(path, {"asked": record, "sizes": as_record(sizes), "planned": planned})
        return record, sizes, planned

    def _sizes(self, plan: JobPlan, kept: dict[str, Any] | None, changed: bool) -> Sizes:
        """What fits here; what the curvature and the training gradients that are there were made with stays."""
        if kept is None:
            return plan.sizes(self.folder)
        sizes = Sizes(**kept["sizes"])
        return replace(sizes, pack_queries=plan.sizes(self.folder).pack_queries) if changed else sizes

    def _query_count(self) -> int:
        return self.options.generate if self.queries is None else len(self.queries)

    def _discard(self, found: Any, asked: Any) -> None:
        """Delete what other options made, and only that."""
        stale = ["samples", "scores", "gradients/queries"]
        stale += [] if _base(found) == _base(asked) else ["curvature", "gradients"]
        for name, place in (("images", "train"), ("queries", "queries")):
            same = all(found.get(key) == asked.get(key) for key in (name, "autoencoder"))
            stale += [] if same else [f"latents/{place}"]
        for name in stale:
            folder = self.folder / name
            parts = [folder] if (folder / MANIFEST).exists() else [path.parent for path in folder.glob(f"*/{MANIFEST}")]
            for part in parts:  # a folder without a manifest is none of ours
                shutil.rmtree(part)

    # --- stages

    def generated(self, sizes: Sizes) -> Named:
        """Samples of the model as queries, kept as tensors and as files to look at; latents with their pictures."""
        folder, count = self.folder / "samples", self.options.generate
        names = tuple(f"sample-{i:04d}.png" for i in range(count))
        steps = min(SAMPLER_STEPS, self.model.process.num_train_timesteps)
        asked = {"model": _short(self.model), "count": count, "seed": self.options.seed, "steps": steps, **self.coded}
        with stage(folder, asked, name="samples") as needed:
            if needed:
                tensors = self._sampled(steps, sizes)
                for name, image in zip(names, tensors["images"], strict=True):
                    _write_picture(folder / name, image)
                write_tensors(folder / "samples.safetensors", tensors)
        found = {name: as_queries(part) for name, part in read_tensors(folder / "samples.safetensors").items()}
        return Named(found["images"], names, latents=found.get("latents"))

    def _sampled(self, steps: int, sizes: Sizes) -> dict[str, Images]:
        """Samples of the model, and of latents the images that they stand for."""
        seeds, coder = sample_seeds(self.options.seed, self.options.generate), self.autoencoder
        shape = self.shape if coder is None else coder.latent_shape(self.shape)
        samples = sample(self.model, seeds, shape, steps=steps, progress=self.progress)
        if coder is None:
            return {"images": samples}
        return {"latents": samples, "images": decoded(coder, samples, batch_size=sizes.encode_batch)}

    def encode(self, record: dict[str, Any], sizes: Sizes) -> None:
        """The latents of training images and queries, for a network that denoises them; the autoencoder then makes room."""
        if self.autoencoder is None:
            return
        assert self.queries is not None
        coded = partial(encoded, autoencoder=self.autoencoder, batch_size=sizes.encode_batch, progress=self.progress)
        folder, common = self.folder / "latents", {"shape": list(self.shape), **self.coded}
        self.train = coded(self.train, folder=folder / "train", identity={"of": record["images"], **common})
        if self.queries.latents is None:
            self.queries = coded(self.queries, folder=folder / "queries", identity={"of": record["queries"], **common})
        self.autoencoder.network.to("cpu")

    def curvature(self, sizes: Sizes) -> Curvature:
        """The curvature of the model on its training images."""
        return fit_curvature(
            self.model, self.train.attributed, self.options.curvature, seed=self.options.seed, batch_size=sizes.fit_batch,
            out=self.folder / "curvature", checkpoint_seconds=CHECKPOINT_SECONDS, progress=self.progress,
        ).to(self.device)  # fmt: skip

    def report(self, record: dict[str, Any], sizes: Sizes) -> Report:
        """Scores and findings; nothing is computed again that is there."""
        folder, gradients, curvature = self.folder / "scores", self.folder / "gradients", None
        if not is_finished(folder, record):
            self.encode(record, sizes)
            curvature = self.curvature(sizes)
        queries = self.queries
        assert queries is not None
        with stage(folder, record, name="scores") as needed:
            if needed:
                assert curvature is not None
                stores = Stores(gradients / "train" if sizes.keep else None, folder / "pieces", gradients / "queries",
                                sizes.query_format, sizes.sketch)  # fmt: skip
                found = score_training_images(
                    self.model, curvature, self.train.attributed, queries.attributed, self.options, stores,
                    batch_size=sizes.batch, progress=self.progress, identity=record,
                )  # fmt: skip
                found |= vars(compare(found.pop("vectors"), self.train.images.images))
                write_tensors(folder / "scores.safetensors", found)
                shutil.rmtree(folder / "pieces", ignore_errors=True)
        found = read_tensors(folder / "scores.safetensors")
        scores, itself, alike = found.pop("scores"), found.pop("self_influence"), Likeness(**found)
        return Report(
            self.folder, self.train, queries, self.options.dampings, self.options.measurement, scores,
            pixel_distances(queries.images.images, self.train.images.images), itself, alike, self.findings(itself, alike),
        )  # fmt: skip

    def findings(self, self_influence: PerExample, alike: Likeness) -> Findings:
        """What may be wrong with the training images."""
        images, labels = self.train.images.images, self.train.images.labels
        return Findings(find_copies(images, alike), find_unusual(self_influence), find_label_doubts(alike, labels))

    # --- what was run

    def made(self, record: dict[str, Any], sizes: Sizes, planned: dict[str, float]) -> dict[str, Any]:
        """Options, versions and cost."""
        stages = {
            "samples": "samples", "latents": "latents/train", "query latents": "latents/queries", "curvature": "curvature",
            "query gradients": "gradients/queries", "train gradients": "gradients/train", "scores": "scores",
        }  # fmt: skip
        measured = {}
        for name, folder in stages.items():
            with suppress(ArtifactError, KeyError):
                measured[name] = read_json(self.folder / folder / "manifest.json")["measured"]["wall_seconds"]
        inside = sum(measured.get(name, 0.0) for name in ("query gradients", "train gradients"))
        measured["scores"] = round(max(0.0, measured["scores"] - inside), 3)
        notes = [*self.train.notes, *(self.queries.notes if self.queries else ())]
        return {
            "asked": record, "digest": json_digest(record), "sizes": as_record(sizes), "planned_seconds": planned,
            "measured_seconds": measured, "environment": environment(), "notes": notes,
            "classes": [*self.train.class_names],
        }  # fmt: skip


def _counted_digest(images: ImageSet) -> dict[str, Any]:
    return {"count": len(images), "digest": images.digest[:16]}


def _short(model: Denoiser) -> dict[str, Any]:
    """What scores depend on of a model, in a line where it is named in a message."""
    identity = model.identity
    trainable = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return identity | {"structure": json_digest(identity["structure"])[:16], "trainable": json_digest(trainable)[:16]}


def _base(record: dict[str, Any]) -> Any:
    """What the curvature and the training gradients depend on."""
    options = record["options"]
    of_images = record["images"], record.get("autoencoder")
    return record["model"], of_images, options["seed"], options["draws"], options["curvature"]


def _write_picture(path: Path, image: Float[Tensor, "C H W"]) -> None:
    with atomic_write(path) as temporary:
        picture(image).save(temporary, format="PNG")
