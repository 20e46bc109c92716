"""Bad input to the command line: one line that names the value and the way out, and exit code 2."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from diffinf_lib.cli import main
from diffinf_lib.presets import PRESETS


def refused(capsys, *words):
    """Run a command that must be refused; return its one line."""
    assert main([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffinf:")]
    assert len(lines) == 1
    return lines[0]


def test_presets_are_listed_and_printed(capsys):
    assert main(["presets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PRESETS)
    assert main(["presets", "digits"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["steps"] == PRESETS["digits"].training.steps


def test_a_folder_without_images(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    assert str(tmp_path) in refused(capsys, "model", "smoke", "--dataset", f"folder:{tmp_path}")


def test_an_output_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write there" in refused(capsys, "model", "smoke", "--run", tmp_path / "file")


def test_a_run_of_another_configuration(capsys, tmp_path):
    main(["model", "smoke", "--run", str(tmp_path / "run"), "--quiet"])
    capsys.readouterr()
    line = refused(capsys, "model", "smoke", "--run", tmp_path / "run", "--set", "training.steps=7")
    assert "training.steps is 20 there, 7 asked" in line and "--force" in line


def test_more_subsets_than_the_ground_truth_holds(capsys, tmp_path):
    line = refused(capsys, "lds", "digits", "--run", tmp_path, "--subsets", "1000")
    assert "1000" in line and "64" in line


def test_an_unfinished_ground_truth_is_counted(capsys, tmp_path):
    main(["ground-truth", "smoke", "--run", str(tmp_path), "--subsets", "1", "--seeds", "1", "--quiet"])
    capsys.readouterr()
    assert "7 of 8 retrained models are missing" in refused(capsys, "bundle", "smoke", "--run", tmp_path)


def test_no_network_for_a_download(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DIFFINF_OFFLINE", "1")
    assert "DIFFINF_OFFLINE" in refused(capsys, "model", "cifar2", "--run", tmp_path / "run")


def test_a_missing_gpu_is_named(capsys, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    missing, unknown = "there is no such device here; give cpu", "give cpu or cuda"
    for device, why in (
        ("cuda", missing),
        ("cuda:9", missing),
        ("tpu", unknown),
        ("meta", unknown),
        ("cuda:x", unknown),
    ):
        said = f"device='{device}': {why}"
        assert said in refused(capsys, "model", "smoke", "--run", tmp_path, "--device", device)
        assert said in refused(capsys, "plan", "smoke", "--device", device)


def test_the_module_exits_with_2_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "diffinf_lib", "model", "mnist"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("launch", "e01_model", "-p", "preset=smoke"), ("reproduce", "smoke"), ("scores", "smoke")]
)
def test_options_are_spelt_alike_everywhere(capsys, words):
    assert "no 'step' there" in refused(capsys, *words, "--set", "training.step=3")
    assert "training.steps='many': give a positive whole number" in refused(
        capsys, *words, "--set", "training.steps=many"
    )
    if words[0] != "scores":
        assert "training.steps=1.5: give" in refused(capsys, *words, "-p", 'options={"training.steps": 1.5}')


def test_a_refused_run_does_not_stand_in_the_way_of_its_correction(tmp_path, capsys):
    arguments = [
        "model",
        "smoke",
        "--run",
        str(tmp_path / "run"),
        "--quiet",
        "--set",
        "training.steps=2",
        "--set",
        "sampling.steps=2",
    ]
    assert main([*arguments, "--set", "dataset.train_size=100000"]) == 2
    assert main([*arguments, "--set", "unet.in_channels=3", "--set", "unet.out_channels=3"]) == 2
    assert "give unet.in_channels=1 and unet.out_channels=1" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
    assert main(arguments) == 0


@pytest.mark.parametrize("option", ["unet.block_out_channels=32,64,96", "unet.norm_num_groups=7", "unet.dropout=2"])
def test_a_network_that_cannot_be(capsys, tmp_path, option):
    line = refused(capsys, "model", "smoke", "--run", tmp_path / "run", "--set", option)
    name, _, value = option.partition("=")
    assert f"{name.removeprefix('unet.')}={value}" in line and "give" in line
    assert not (tmp_path / "run").exists()


def test_blocks_and_images_that_do_not_fit(capsys, tmp_path):
    def words(*options):
        return ["model", "smoke", "--run", tmp_path, *(word for option in options for word in ("--set", option))]

    assert "Down does not exist" in refused(capsys, *words("unet.down_block_types=DownBlock2D,Down"))
    five = ",".join("8" * 5), ",".join(["DownBlock2D"] * 5), ",".join(["UpBlock2D"] * 5)
    names = ("block_out_channels", "down_block_types", "up_block_types")
    options = [f"unet.{name}={value}" for name, value in zip(names, five, strict=True)]
    assert "images have 8×8 pixels, 5 blocks take multiples of 16" in refused(capsys, *words(*options))
    assert not (tmp_path / "config.json").exists()


def test_a_command_refused_after_opening_leaves_the_folder_free(capsys, tmp_path):
    """Only a stage makes a run folder that of its configuration."""
    words = ("--ground-truth", "digits-ground-truth", "--subsets", "1000")
    assert "subsets=1000" in refused(capsys, "lds", "smoke", "--run", tmp_path, *words)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "e01_model.ipynb").write_text("{}")
    steps = ["--set", "training.steps=2", "--set", "sampling.steps=2"]
    assert main(["model", "smoke", "--run", str(tmp_path), "--quiet", *steps]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["preset"]["training"]["steps"] == 2
    capsys.readouterr()
    assert "training.steps is 2 there, 20 asked" in refused(capsys, "model", "smoke", "--run", tmp_path)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("process.target=velocity", "method='ddim': a process with target='velocity' is sampled by euler"),
        ("process.zero_terminal_snr=true", "such a model is trained with target='v'"),
        ("sampling.steps=2000", "steps=2000: give a whole number from 1 to 1000"),
    ],
)
def test_samples_that_the_process_cannot_give_are_refused_before_the_training(capsys, tmp_path, option, said):
    assert said in refused(capsys, "model", "smoke", "--run", tmp_path, "--set", option)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bars_are_for_terminals(capsys, tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert main(["model", "smoke", "--run", str(tmp_path), "--set", "training.steps=2"]) == 0
    assert ("train" in capsys.readouterr().err) == terminal


def test_a_warning_is_one_line(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 50 * (i // 2)).save(tmp_path / "images" / f"{i}.png")
    words = ["model", "smoke", "--dataset", f"folder:{tmp_path / 'images'}", "--run", str(tmp_path / "run")]
    options = ["dataset.train_size=none", "dataset.query_size=2", "training.steps=2", "sampling.steps=2"]
    words += [word for option in options for word in ("--set", option)]
    done = subprocess.run([sys.executable, "-m", "diffinf_lib", *words], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["warning"]
    assert "queries are training images too" in done.stderr


LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))\n"
RUN_MAIN = "from diffinf_lib.cli import main; sys.exit(main(sys.argv[1:]))"


def test_without_room_a_command_ends_in_one_line_and_goes_on_later(tmp_path, capsys):
    words = ["model", "smoke", "--run", str(tmp_path), "--quiet"]
    done = subprocess.run([sys.executable, "-c", LIMITED + RUN_MAIN, *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"diffinf: {tmp_path}" in done.stderr and "cannot be written (File too large); make room" in done.stderr
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert files and all(path.suffix == ".json" for path in files)
    assert main(words) == 0
    assert not list(tmp_path.rglob("*.part"))


def test_output_that_has_no_room_is_told_in_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "diffinf_lib", "presets"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.startswith("diffinf: output: cannot be written (No space left")
    assert done.stderr.count("\n") == 1


def test_a_terminal_that_lacks_a_letter_shows_another(tmp_path):
    words = [sys.executable, "-m", "diffinf_lib", "scores"]
    narrow = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, env=narrow)
    assert done.returncode == 0 and "--damping DAMPING   ?; may be given several times" in done.stdout
    done = subprocess.run([*words, "λ"], capture_output=True, text=True, env=narrow)
    assert done.returncode == 2 and "preset='?': no such preset" in done.stderr


LARGE = ("torch", "numpy", "diffusers", "curvlinops", "matplotlib", "papermill", "scipy", "sklearn")
LOADED = f"; print('loaded:', sorted({{*{LARGE}}} & {{*sys.modules}}))"
MAIN = """
from diffinf_lib.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
print('code:', code)"""


def answered(code, *words):
    """Run some code in a fresh process; what it printed, and the one line of its refusal. It has loaded nothing large."""
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}{LOADED}", *words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "loaded: []", done.stdout[-200:] + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import diffinf_lib",
        "import diffinf_lib as di; di.ConfigurationError; di.with_options; di.get_preset('digits'); di.Process()",
        "import diffinf_lib.configuration, diffinf_lib.presets, diffinf_lib.report.options",
    ],
)
def test_configurations_load_nothing_large(code):
    answered(code)


@pytest.mark.parametrize("words", ["--help", "attribute --help", "scores --help", "presets", "presets digits"])
def test_what_needs_no_tensors_answers_at_once(words):
    printed, _ = answered(MAIN, *words.split())
    assert "code: 0" in printed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("predict", "invalid choice: 'predict'"),
        ("presets mnist", "preset='mnist': no such preset; give one of smoke"),
        ("plan mnist", "preset='mnist'"),
        ("plan digits --train-count 0", "train_count=0: give a positive whole number"),
        ("plan digits --flops nan", "flops=nan: give a positive number"),
        ("model mnist", "preset='mnist'"),
        ("model smoke --dampening 3", "unrecognized arguments: --dampening 3"),
        ("model smoke --seed one", "seed='one': give a whole number"),
        ("model smoke --threads 0", "threads=0: give a positive whole number"),
        ("model smoke --device tpu", "device='tpu': give cpu or cuda"),
        ("model smoke --set training.step=3", "no 'step' there"),
        ("model smoke --set training.steps", "option 'training.steps': give OPTION=VALUE"),
        ("model smoke --set training.steps=many", "training.steps='many': give a positive whole number"),
        ("model smoke --set sampling.method=best", "sampling.method='best': give ddpm, ddim or euler"),
        ("model smoke --set process.beta_end=2", "beta_end=2.0: give 0 < beta_start"),
        ("model smoke --dataset paintings", "dataset='paintings': no such dataset; give one of digits"),
        ("model smoke --dataset=", "dataset='': no such dataset"),
        ("model smoke --dataset folder:", "dataset='folder:': no path; give folder:PATH"),
        ("model smoke --dataset folder:no/where", "no/where: there is no such folder"),
        ("ground-truth smoke --shard 2 --shards 2", "shard=2 of 2"),
        ("ground-truth smoke --subsets 0", "subsets=0: give a positive whole number"),
        ("scores smoke --damping=-1", "damping=-1.0: give a number >= 0"),
        ("scores smoke --queries some", "queries='some': give held-out or generated"),
        ("lds smoke --ground-truth none", "ground_truth='none': none of that name; there are: "),
        ("launch e99_nothing", "no such experiment; give one of e01_model"),
        ("launch e02_ground_truth -p shrad=1", "parameter='shrad': e02_ground_truth has none of that name"),
        ("launch e02_ground_truth -p shard=3", "shard=3 of 1"),
        ("launch e01_model -p preset=mnist", "preset='mnist'"),
        ("launch e01_model --set training.step=3", "no 'step' there"),
        ("launch e05_methods -p methods=[\"ekfca\"]", "methods=['ekfca']: give a list with each entry ekfac, kfac"),
        ("launch e05_methods -p methods=trak,dass", "methods=['trak', 'dass']: give a list with each entry ekfac, kfac"),
        ("launch e05_methods -p attributed=losss", "attributed=['losss']: give a list with each entry a measurement, such as"),
        ("launch e01_model -p threads=0", "threads=0: give a positive whole number"),
        ("reproduce mnist", "preset='mnist'"),
        ("reproduce smoke --workers 0", "workers=0: give a positive whole number"),
        ("reproduce smoke -p sedes=1", "parameter='sedes': none of that name"),
        ("attribute tiny/model IMAGES IMAGES --draws 3", "draws=3: antithetic draws come in pairs"),
        ("attribute tiny/model IMAGES IMAGES --damping nan", "damping=nan: give a number >= 0"),
        ("attribute tiny/model IMAGES IMAGES --measurement lost", "measurement='lost': give loss, "),
        ("attribute tiny/model IMAGES IMAGES --image-size 0", "image_size=0: give a positive whole number"),
        ("attribute tiny/model IMAGES no/where", "queries=no/where: there is no such folder or file"),
        ("attribute nope IMAGES IMAGES", "model=nope: there is no such folder; give a pipeline folder"),
        ("attribute IMAGES IMAGES IMAGES", "neither config.json nor unet/config.json"),
        ("attribute ~nosuchuser/x IMAGES IMAGES", "model=~nosuchuser/x: there is no such folder"),
        ("attribute tiny/model ~nosuchuser/x IMAGES", "images=~nosuchuser/x: there is no such folder or file"),
        ("model smoke --dataset folder:~nosuchuser/x", "~nosuchuser/x: there is no such folder"),
        ("attribute tiny/model IMAGES", "queries: give a folder or files to explain"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_at_once(tmp_path, words, line):
    printed, refusal = answered(MAIN, *words.replace("IMAGES", str(tmp_path)).split())
    assert "code: 2" in printed
    assert refusal.startswith("diffinf: ") and refusal.count("\n") == 1 and line in refusal
