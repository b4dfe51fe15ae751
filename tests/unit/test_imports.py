"""What importing loads, and which module may import which."""

import ast
import subprocess
import sys
import textwrap
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest
import torch

import difformer
from difformer._optional import require
from difformer.models.shapes import only_shapes

PACKAGE = Path(difformer.__file__).parent
HEAVY = [
    "torchvision",
    "timm",
    "xformers",
    "matplotlib",
    "jinja2",
    "accelerate",
    "huggingface_hub",
    "jsonargparse",
    "torchmetrics",
    "datasets",
    "scipy",
    "sklearn",
    "elpv_dataset",
    "pycocotools",
]

# A module may import those of its own rank and below.
RANKS = {
    "_version": 0, "_optional": 0, "files": 0, "tables": 0, "allocator": 0, "taps": 0, "config": 0, "streams": 0,
    "registry": 0, "rle": 0, "maps": 0,
    "diffusion": 1, "models": 1, "data": 1, "analysis": 1,
    "checkpoints": 2, "annotations": 2,
    "backbones": 3, "heads": 3, "distillation": 3, "report": 3,
    "features": 4, "tasks": 4,
    "classifier": 5,
    "engine": 6, "sklearn": 6,
    "verbs": 7,
    "cli": 8,
}  # fmt: skip
HEADS_MAY_IMPORT = {"_version", "_optional", "taps", "config", "maps", "models", "heads", "registry"}


def run(script, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, **options
    )


def imported_parts(path):
    """The parts of the package that a file imports, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "difformer":
                names = [f"difformer.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("difformer."))


def test_importing_loads_nothing_heavy():
    imports = "import sys, difformer, difformer.cli"
    done = run(f"{imports}; print([name for name in {[*HEAVY, 'torch', 'numpy']} if name in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")
    imports = "import sys, difformer.analysis, difformer.report, difformer; difformer.create_backbone"
    done = run(f"{imports}; print([name for name in {HEAVY} if name in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_shapes_do_not_need_the_compiler():
    """Importing it takes seconds, of every first classifier that is opened."""
    done = run("""
        import sys
        from difformer import FeatureKey, TapSpec, UNet, UNetConfig
        from difformer.heads import HEADS
        from difformer.models.shapes import only_shapes
        config = UNetConfig(32, 32, (1, 2), 1, (), num_classes=10)
        keys = {FeatureKey(tap, 9): TapSpec(tap, i, 32, 8 * 2**i, 1) for i, tap in enumerate(["out01", "out00"])}
        arguments = {"difformer": {"variant": "joint", "attention_pool": True}, "upernet": {"norm": "group"}}
        with only_shapes():
            built = [UNet(config)]
            for name in ("difformer", "dense_difformer", "upernet", "pixel_mlp"):
                built.append(HEADS.find(name)(keys, 3, **arguments.get(name, {})))
        print({p.device.type for module in built for p in module.parameters()}, "torch._dynamo" in sys.modules)
    """)
    assert done.stdout == "{'meta'} False\n"


def test_values_are_drawn_where_there_are_any():
    with only_shapes(), torch.device("cpu"):
        drawn = torch.nn.init.normal_(torch.zeros(1000)), torch.zeros(1000).normal_()
    assert all(0.8 < values.std() < 1.2 for values in drawn)


def test_dependencies_point_one_way():
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        for other in imported_parts(path):
            assert RANKS[other] <= RANKS[part], f"{path} must not import difformer.{other}"
            assert part != "heads" or other in HEADS_MAY_IMPORT, f"{path} must not import difformer.{other}"
            assert part == other or RANKS[other] < RANKS[part] or RANKS[part] == 0


def test_every_public_name_exists_and_is_documented():
    for name in difformer.__all__:
        value = getattr(difformer, name)
        assert not callable(value) or value.__doc__, name
        for member, content in vars(value).items() if isinstance(value, type) else ():
            public = isinstance(content, classmethod | staticmethod | property | cached_property | FunctionType)
            if public and not member.startswith("_"):
                assert content.__doc__, f"{name}.{member}"


BROKEN = ["torchvision", "timm", "xformers", "huggingface_hub", "jsonargparse"]


@pytest.fixture
def broken(tmp_path):
    """A folder with libraries that are found and do not load."""
    for name in BROKEN:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    return str(tmp_path)


def test_broken_libraries_spoil_only_what_uses_them(broken):
    script = f"""
        import sys
        sys.path.insert(0, {broken!r})
        import torch, difformer
        from difformer._optional import require
        config = difformer.UNetConfig(8, 32, (1,), 1, ())
        backbone = difformer.create_backbone(difformer.UNet(config), schedule="linear")
        assert backbone.forward_taps(torch.zeros(1, 3, 8, 8), 1, ["mid"])["mid"].shape == (1, 32, 8, 8)
        for name in {BROKEN}:
            try:
                require(name, "this test")
            except ImportError as error:
                print(error)
    """
    done = run(script)
    for name in BROKEN:
        assert f"this test needs {name}, which does not load (operator torchvision::nms" in done.stdout
        assert f"pip install --upgrade {name}" in done.stdout


def test_what_needs_a_broken_library_says_so(broken):
    script = f"""
        import sys
        sys.path.insert(0, {broken!r})
        import difformer, difformer.cli
        assert difformer.cli.main(["info", "adm256_uncond"]) == 1
        difformer.create_backbone("hf://a/b")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 1
    for message in (
        "difformer: error: the command line needs jsonargparse[signatures]",
        "ImportError: reading hf://a/b needs huggingface_hub",
    ):
        assert f"{message}, which does not load (operator torchvision::nms" in done.stderr
    assert done.stderr.count("pip install --upgrade") == 2


def test_a_missing_library_says_what_to_install():
    with pytest.raises(ImportError, match="counting needs no_such_library, which is not installed; run: pip install"):
        require("no_such_library", "counting")
