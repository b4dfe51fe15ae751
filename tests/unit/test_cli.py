import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import small_config, small_unet

from difformer import (
    DiffusionClassifier,
    FeatureExtractor,
    LinearHead,
    NoiseSchedule,
    UNetBackbone,
    create_backbone,
    save_classifier,
)
from difformer.cli import SKIPPED, main
from difformer.cli.completion import choices
from difformer.cli.help import AIMS, described, options
from difformer.cli.runs import RECIPE_VERBS
from difformer.cli.verbs import VERBS
from difformer.data.dataset import canonical_name
from difformer.files import sha256
from difformer.heads import HEADS
from difformer.tasks import Prediction
from difformer.verbs.predict.predict import prediction_lines

ROOT = Path(__file__).parents[2]
WEIGHTS = ["--arch.image_size=32", "--arch.num_head_channels=16"]
WEIGHTS += ["--arch.use_new_attention_order=false", "--schedule=cosine", "--num_timesteps=1000"]


@pytest.fixture
def weights(tmp_path):
    torch.save(small_unet().state_dict(), tmp_path / "own.pt")
    return str(tmp_path / "own.pt")


def test_info_prints_the_table_without_weights(capsys):
    assert main(["info", "adm256_uncond"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.lstrip()[:1].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 38))
    assert rows[23] == ["24", "out04", "1024", "16×16", "639.3", "28.6%"]
    assert any("schedule: linear, 1000 timesteps" in line for line in lines)


def test_info_never_allocates_the_weights():
    """A whole process, limited to less memory than the weights alone would need beyond its own start."""
    script = """
import resource, difformer.cli
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
difformer.cli.main(["info", "adm512_cond", "--as_json"])
assert peak() - before < 300_000, peak() - before  # KiB; the weights are 2.2 million
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["taps"]) == 43


def test_info_reads_files(weights, capsys, tmp_path):
    assert main(["info", weights, *WEIGHTS, "--as_json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["channel_mult"] == [1, 1, 2]
    assert told["schedule"] == {"name": "cosine", "num_timesteps": 1000}
    assert told["taps"][9]["name"] == "mid"
    main(["convert", weights, str(tmp_path / "own.safetensors"), *WEIGHTS])
    capsys.readouterr()
    assert main(["info", str(tmp_path / "own.safetensors"), "--as_json"]) == 0
    assert json.loads(capsys.readouterr().out) == told


def test_convert_writes_a_file_that_is_enough(weights, tmp_path, capsys):
    out = tmp_path / "own.safetensors"
    assert main(["convert", weights, str(out), *WEIGHTS]) == 0
    assert "wrote" in capsys.readouterr().out
    backbone = create_backbone(out)
    assert backbone.config == small_config()
    assert backbone.provenance["file"] == "own.pt"
    assert backbone.digest == create_backbone(weights, config=small_config(), schedule=backbone.schedule).digest
    assert main(["convert", weights, str(out), *WEIGHTS]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", weights, str(out), *WEIGHTS, "--overwrite"]) == 0


def test_convert_refuses_what_it_cannot_know(weights, tmp_path, capsys):
    assert main(["convert", weights, str(tmp_path / "own.safetensors")]) == 1
    assert "still to be given: image_size" in capsys.readouterr().err
    assert main(["convert", weights, str(tmp_path / "own.safetensors"), "--preset=adm256_uncond"]) == 1
    assert "own.pt does not fit" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["own.pt"]


def test_a_file_under_a_presets_name_must_fit_it(tmp_path, capsys):
    """The commonest mishap: other weights under a well-known name."""
    torch.save(small_unet().state_dict(), tmp_path / "lsun_cat.pt")
    for verb in (
        ["info", str(tmp_path / "lsun_cat.pt")],
        ["convert", str(tmp_path / "lsun_cat.pt"), str(tmp_path / "x")],
    ):
        assert main(verb) == 1
        assert "lsun_cat.pt does not fit" in capsys.readouterr().err


def test_switches_may_go_without_a_value(capsys, monkeypatch, anywhere):
    asked = []
    monkeypatch.setattr(
        "difformer.checkpoints.sources.fetch", lambda url, *args, **kw: asked.append(url) or sys.exit(9)
    )
    for switch in ("--download", "--download=true"):
        with pytest.raises(SystemExit):
            main(["convert", "lsun_cat", "out.safetensors", switch])
    assert len(asked) == 2
    assert main(["convert", "lsun_cat", "out.safetensors", "--download", "false"]) == 1
    assert "--download" in capsys.readouterr().err


def test_the_output_is_checked_before_the_work(tmp_path, capsys):
    assert main(["convert", "no_such_source", str(tmp_path / "missing" / "x.safetensors")]) == 1
    assert "missing does not exist" in capsys.readouterr().err


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A saved classifier and a folder of images, two of which cannot be read."""
    monkeypatch.chdir(tmp_path)
    backbone = UNetBackbone(small_unet(), NoiseSchedule.linear(), name="small")
    (tmp_path / "checkpoints").mkdir()
    backbone.save("checkpoints/small.safetensors")
    extractor = FeatureExtractor(backbone, taps=["out02"], timesteps=[90])
    classifier = DiffusionClassifier(extractor, LinearHead(extractor.specs, 2), class_names=["a, b", "c"])
    save_classifier("model.safetensors", classifier)
    for i in range(5):
        path = tmp_path / "images" / f"sub{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 36), (50 * i, 0, 90)).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return classifier


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_names_of_files_and_classes_are_no_formulas(model):
    Image.new("RGB", (32, 32)).save("images/=1+1.png")
    model.class_names = ("@SUM(A1)", "-c")
    save_classifier("model.safetensors", model)
    assert main(["predict", "model.safetensors", "images", "--csv", "out.csv"]) == 0
    first = rows("out.csv")[0]
    assert first["file"] == "'=1+1.png"
    assert first["label"] in ("'@SUM(A1)", "'-c")
    assert {"'@SUM(A1)", "'-c"} < set(first)


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        (["convert", "checkpoints/small.safetensors", "small.pt"], ".safetensors"),
        (["predict", "model.safetensors", "images", "--csv", "out.xlsx"], ".csv"),
        (["bench", "--json_file", "out.yaml"], ".json"),
    ],
)
def test_a_name_that_says_another_format_is_refused(model, capsys, arguments, ending):
    assert main(arguments) == 1
    assert f"give it a name that ends in {ending}" in capsys.readouterr().err


def test_predict_writes_a_table(model, capsys):
    assert main(["predict", "model.safetensors", "images", "--csv", "out.csv", "--batch_size=2"]) == 0
    assert "wrote out.csv: 5 of 5 images" in capsys.readouterr().out
    table = rows("out.csv")
    assert [row["file"] for row in table] == sorted(f"sub{i % 2}/{i}.png" for i in range(5))
    for row in table:
        expected = model.predict(f"images/{row['file']}")[0]
        assert row["label"] == expected.label
        assert float(row["probability"]) == pytest.approx(expected.probability, abs=1e-5)
        assert float(row["a, b"]) == pytest.approx(expected.probabilities["a, b"], abs=1e-5)
    assert main(["predict", "model.safetensors", "images", "--csv", "out.csv"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["predict", "model.safetensors", "images", "--csv", "out.csv", "--overwrite"]) == 0


def test_predict_reports_and_skips_unreadable_images(model, capsys):
    Path("images/sub0/2.png").write_bytes(b"broken")
    Path("images/sub1/zero.jpg").touch()
    assert main(["predict", "model.safetensors", "images", "--csv", "out.csv"]) == SKIPPED
    captured = capsys.readouterr()
    assert captured.err.count("skipped: images/sub") == 2
    assert "left out files that are no images: 1 of .txt" in captured.err
    assert "4 of 6 images, 2 skipped" in captured.out
    assert len(rows("out.csv")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "--csv", "missing/out.csv"], "missing does not exist"),
        (["nothing", "--csv", "out.csv"], "there is no folder and no image nothing"),
        (["nothing"], "there is no folder and no image nothing"),
        (
            ["images"],
            "give --csv, the table to write, in place of --output, or without it the file of one image, not images",
        ),
        (["checkpoints", "--csv", "out.csv"], "holds no image"),
        (["images", "--csv", "out.csv", "--batch_size=0"], "batch_size must be at least 1"),
        (["images", "--csv", "out.csv", "--backbone=nothing"], "nothing"),
        (["images", "--csv", "out.csv", "--device=nothing"], "nothing"),
    ],
)
def test_predict_refuses_what_it_cannot_do(model, capsys, arguments, message):
    assert main(["predict", "model.safetensors", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not Path("out.csv").exists()


def test_predict_takes_one_image(model, capsys):
    Path("photo").write_bytes(Path("images/sub0/0.png").read_bytes())
    (expected,) = model.predict("photo")
    assert main(["predict", "model.safetensors", "photo"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        f"{probability:6.1%}  {name}"
        for name, probability in sorted(expected.probabilities.items(), key=lambda pair: pair[1], reverse=True)
    ]
    assert main(["predict", "model.safetensors", "photo", "--csv", "out.csv"]) == 0
    (row,) = rows("out.csv")
    assert (row["file"], row["label"]) == ("photo", expected.label)
    assert float(row["c"]) == pytest.approx(expected.probabilities["c"], abs=1e-5)


def test_of_many_classes_the_likeliest_are_shown(model):
    values = {f"class{number}": probability for number, probability in enumerate([0.01] * 6 + [0.2] + [0.07] * 10)}
    lines = prediction_lines(model, Prediction("class6", 0.2, values))
    assert lines[:2] == [" 20.0%  class6", "  7.0%  class7"]
    assert lines[-2:] == ["  7.0%  class15", " 13.0%  7 other classes"]
    assert len(lines) == 11


def test_one_image_that_cannot_be_read_is_an_error(model, capsys):
    Path("photo.png").write_bytes(b"broken")
    for table in ([], ["--csv", "out.csv"]):
        assert main(["predict", "model.safetensors", "photo.png", *table]) == 1
        assert "photo.png cannot be read as an image" in capsys.readouterr().err
    assert not Path("out.csv").exists()


def test_predict_without_a_readable_image_writes_nothing(model, capsys):
    for path in Path("images").rglob("*.png"):
        path.write_bytes(b"broken")
    assert main(["predict", "model.safetensors", "images", "--csv", "out.csv"]) == 1
    assert "cannot be read as an image" in capsys.readouterr().err
    assert not Path("out.csv").exists()


def test_predict_writes_what_a_link_points_to(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "elsewhere/table.csv")
    assert main(["predict", "model.safetensors", "images", "--csv", "~/out.csv"]) == 0
    assert (tmp_path / "out.csv").is_symlink()
    assert len(rows(tmp_path / "elsewhere/table.csv")) == 5


def test_an_interrupted_prediction_keeps_what_was_done(model, capsys, monkeypatch):
    predict, calls = DiffusionClassifier.predict, []

    def stop_at_the_third(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*args, **options)

    monkeypatch.setattr(DiffusionClassifier, "predict", stop_at_the_third)
    assert main(["predict", "model.safetensors", "images", "--csv", "out.csv", "--batch_size=1"]) == 130
    captured = capsys.readouterr()
    assert "2 of 5 images" in captured.out
    assert "interrupted" in captured.err
    assert len(rows("out.csv.partial")) == 2
    assert not Path("out.csv").exists()


def test_errors_are_one_message_and_no_traceback(capsys, tmp_path):
    assert main(["info", "adm256_unconditional"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("difformer: error: there is no file adm256_unconditional")
    assert captured.out == ""
    (tmp_path / "empty.pt").touch()
    assert main(["info", str(tmp_path / "empty.pt")]) == 1
    assert "empty.pt is empty (0 bytes)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["inform"], ["convert"], ["info", "--as_json"], ["info", "adm256_uncond", "--unknown=1"], []]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: difformer" in capsys.readouterr().err


def test_the_console_command_is_installed():
    command = Path(sys.executable).with_name("difformer")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert {"info", "convert"} <= set(done.stdout.replace("{", " ").replace("}", " ").replace(",", " ").split())


def test_convert_is_told_the_number_of_steps(weights, tmp_path, capsys):
    out = str(tmp_path / "own.safetensors")
    options = [option for option in WEIGHTS if "num_timesteps" not in option]
    for given, message in (
        ([], "the schedule's number of steps"),
        (["--num_timesteps=4000"], "say --rescale_timesteps true or false"),
        (["--rescale_timesteps=true"], "--rescale_timesteps goes with --num_timesteps"),
        (["--num_timesteps=0"], "num_timesteps must be a positive integer"),
    ):
        assert main(["convert", weights, out, *options, *given]) == 1
        assert message in capsys.readouterr().err
    assert main(["convert", weights, out, "--num_timesteps=4000"]) == 1
    assert "--num_timesteps goes with --schedule" in capsys.readouterr().err
    for rescale in (False, True):
        given = ["--num_timesteps=4000", f"--rescale_timesteps={rescale}".lower(), "--overwrite"]
        assert main(["convert", weights, out, *options, *given]) == 0
        schedule = create_backbone(out).schedule
        assert (schedule.num_timesteps, schedule.rescale_timesteps) == (4000, rescale)
        capsys.readouterr()
        assert main(["info", out]) == 0
        assert ("4000 timesteps, told to the network in 1000" in capsys.readouterr().out) == rescale


def test_convert_chooses_an_entry_and_writes_down_the_sources_digest(weights, tmp_path, capsys):
    source, out = tmp_path / "all.pt", tmp_path / "own.safetensors"
    torch.save({"ema": torch.load(weights), "step": 3}, source, _use_new_zipfile_serialization=False)
    assert main(["convert", str(source), str(out), *WEIGHTS]) == 1
    assert "--entry ema" in capsys.readouterr().err
    assert main(["convert", str(source), str(out), *WEIGHTS, "--entry=ema"]) == 0
    assert f"from all.pt, SHA-256 {sha256(source)}" in capsys.readouterr().out
    assert create_backbone(out).provenance == {"file": "all.pt", "file_sha256": sha256(source), "entry": "ema"}
    assert main(["info", str(source), *WEIGHTS, "--entry=ema"]) == 0


def test_every_verb_is_listed_under_what_it_is_for(capsys):
    assert sorted(name for names in AIMS.values() for name in names) == sorted(VERBS)
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert re.search(r"to train and measure:\n  train  .*Trains a head", printed)


def test_what_is_said_of_verbs_is_what_they_are():
    spec = spec_from_file_location("options", ROOT / "tools" / "options.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert described() == tool.describe(), "run python tools/options.py"


# Without what takes long to load: none of these may need it.
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("--help", 0, "to train and measure:"),
        ("--version", 0, "difformer 0"),
        ("train --help=all", 0, "--training.ema"),
        ("help", 0, "to train and measure:"),
        ("train --help", 0, "more: `difformer train --help all`"),
        ("predict --help all", 0, "--weights_folder PATH"),
        ("trian", 2, "unknown verb 'trian'; did you mean 'train'?"),
        ("train recipe.yaml --optimizer.lrr 3", 1, "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("train recipe.yaml --block_list 3", 1, "here it is --extractor.taps"),
        ("predict a b --ofwrite", 2, "unknown key 'ofwrite'"),
        ("completion bash", 0, "complete -o default -F _difformer difformer"),
        ("completion fish", 0, "complete -c difformer -n '__fish_seen_subcommand_from train'"),
        ("completion", 2, "required: SHELL"),
        ("completion csh", 1, "shell must be bash, zsh or fish, got 'csh'"),
    ],
)
def test_what_needs_no_torch_is_answered_without(arguments, status, said):
    program = "import sys; sys.modules['torch'] = None; from difformer.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, *arguments.split()], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tr", ["train", "transfer"]),
        ("train recipe.yaml --optimizer.l", ["--optimizer.lr"]),
        ("predict --over", ["--overwrite"]),
        # Files are left to the shell.
        ("predict exa", []),
        ("train --backbone.name exa", []),
        ("train --head.name ml", ["mlp"]),
        ("train --head.name = pi", ["pixel_mlp"]),
        # As zsh has it.
        ("train --head.name=pi", ["--head.name=pixel_mlp"]),
        ("train --head.name --over", ["--overwrite"]),
        ("probe --method k", ["knn"]),
        ("sweep --method k", []),
        ("train --backbone.name adm32", ["adm32_cifar10"]),
        ("train --backbone.download t", ["true"]),
        ("eval --metrics macro", ["macro_f1"]),
        # A mapping from data sets to metrics.
        ("transfer --metrics macro", []),
        # A section.
        ("train --backbone adm32", []),
        ("predict model --backbone adm32", ["adm32_cifar10"]),
    ],
)
def test_bash_completes_verbs_options_values_and_files(line, offered, capsys):
    assert main(["completion", "bash"]) == 0
    words = ["difformer", *line.split()]
    asked = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _difformer; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", capsys.readouterr().out + asked], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == offered, done.stderr


def test_bash_offers_all_values_after_an_equals_sign(capsys):
    assert main(["completion", "bash"]) == 0
    asked = 'COMP_WORDS=(difformer train --features =); COMP_CWORD=3; _difformer; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", capsys.readouterr().out + asked], capture_output=True, text=True)
    assert done.stdout.split() == ["live", "cached"], done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not here")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tr", {"train", "transfer"}),
        ("train recipe.yaml --optimizer.l", {"--optimizer.lr"}),
        ("train --head.name lin", {"linear", "linear_pixel"}),
        ("train --head.name=up", {"--head.name=upernet"}),
        ("sweep --method ", {"ridge", "logistic", "sgd"}),
        # Names may stand beside files.
        ("train --backbone.name READ", {"README.md"}),
        ("predict READ", {"README.md"}),
    ],
)
def test_fish_completes_verbs_options_values_and_files(line, offered, tmp_path, capsys):
    assert main(["completion", "fish"]) == 0
    (tmp_path / "difformer.fish").write_text(capsys.readouterr().out)
    asked = f"source {tmp_path}/difformer.fish; complete -C {shlex.quote(f'difformer {line}')}"
    done = subprocess.run(["fish", "--no-config", "-c", asked], capture_output=True, text=True, cwd=ROOT)
    assert {words.split("\t")[0] for words in done.stdout.splitlines()} == offered, done.stderr


def test_values_that_are_completed_are_taken():
    """Every choice that the file of options names is one of the code's."""
    keys = {key["name"]: key for key in options("train")}
    assert {"linear", "upernet"} < set(choices(keys["head.name"])) <= set(HEADS)
    for name in choices(keys["data.name"]):
        assert canonical_name(name) == name
    assert choices(keys["backbone.gradient_checkpointing"]) == ["true", "false", "auto"]
    assert choices(keys["training.epochs"]) == []


@pytest.mark.parametrize("name", RECIPE_VERBS)
def test_help_shows_what_is_used_first_and_all_when_asked(name, capsys):
    verb = RECIPE_VERBS[name]
    assert main([name, "--help"]) == 0
    short = capsys.readouterr().out
    assert set(re.findall(r"^  --([\w.]+)", short, re.M)) == {"config", *verb.switches, *verb.shown}
    assert len(verb.shown) <= 10
    assert {key["name"] for key in options(name)} >= {*verb.switches, *verb.shown}
    assert main([name, "--help", "all"]) == 0
    whole = set(re.findall(r"^  --([\w.]+)", capsys.readouterr().out, re.M))
    assert whole > {"config", *verb.switches, *verb.shown}
    left_out = int(re.search(r"(\d+) more: `difformer \w+ --help all`", short)[1])
    assert left_out == len(whole) - len(verb.switches) - len(verb.shown) - 1
