"""README and docs: code blocks run or parse, links lead somewhere, tables name what is there."""

import argparse
import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from smallobj_d2.__main__ import COMMANDS
from smallobj_d2.config import get_cfg, has_detectron2, load_cfg
from smallobj_d2.copy_paste import STRATEGIES
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.evaluation.ap import load_ground_truth

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    p.relative_to(ROOT)
    for p in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/*.md"))
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README, RECIPE = Path("README.md"), Path("docs/recipe.md")
FRAMEWORKS = Path("docs/frameworks.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[Any]:
    """Code blocks of all pages in one language, by page and number."""
    return [
        pytest.param(page, block, id=f"{page}-{i}")
        for page, text in TEXTS.items()
        for i, block in enumerate(b for name, b in FENCE.findall(text) if name == language)
    ]


def as_rle(scenes: Path) -> dict[str, Any]:
    """The content of a COCO JSON, its masks as RLE."""
    truth = load_ground_truth(scenes)
    for annotation in truth.anns.values():
        rle = truth.annToRLE(annotation)
        annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    return truth.dataset


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """A folder with the files that pages name; in place of datasets, a few synthetic scenes."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "experiments", "tools"):
        (folder / name).symlink_to(ROOT / name)
    scenes = make_dataset(folder, "scenes", 6, seed=1, size=96, progress=False)
    for split in ("train", "val"):
        shutil.copy(scenes, folder / f"{split}.json")
        shutil.copytree(scenes.parent / "images", folder / "images" / split)
        nuclei = folder / "datasets" / "dsb2018"
        (nuclei / "annotations").mkdir(parents=True, exist_ok=True)
        (nuclei / "annotations" / f"{split}.json").write_text(json.dumps(as_rle(scenes)))
        shutil.copytree(scenes.parent / "images", nuclei / split)
    (recipe,) = (block for name, block in FENCE.findall(TEXTS[RECIPE]) if name == "yaml")
    (folder / "nuclei.yaml").write_text(recipe)
    return folder


# --- Links


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", h).lower() for h in headings)
    return {re.sub(r"[^\w\- ]", "", h).strip().replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[page])):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_path_in_code_exists(page):
    """Paths of this repository in `code`; names with a slash that are no files are left out."""
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", TEXTS[page])):
        name = span.split()[0].partition("::")[0]
        if re.fullmatch(
            r"(tools|tests|configs|docs|proofs|benchmarks|smallobj_d2)/[\w/]+\.\w+", name
        ):
            assert (ROOT / name).is_file(), name


def test_each_code_block_has_a_language():
    languages = {name for text in TEXTS.values() for name, _ in FENCE.findall(text)}
    assert languages <= {"bash", "python", "yaml", "text"}


# --- Commands


class _Parsed(BaseException):
    """The arguments of a command, in place of its work."""


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a command's own parser makes of a command line; unknown arguments are an error."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_args(words[1:])
        assert (args.module, args.training_script) == (True, "smallobj_d2")
        return parsed(["smallobj", *args.training_script_args], monkeypatch)
    if words[0] == "smallobj":
        module, rest = f"smallobj_d2.commands.{COMMANDS[words[1]][0]}", words[2:]
    else:
        assert words[:2] in (["python", "-m"], ["python3", "-m"]), words
        module, rest = words[2], words[3:]
    original = argparse.ArgumentParser.parse_known_args

    def parse_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        namespace, unknown = original(self, *args, **kwargs)
        overrides = getattr(namespace, "opts", None) or unknown
        namespace.opts = overrides
        if module.startswith(("proofs", "benchmarks")):
            assert not unknown, unknown
        raise _Parsed(namespace)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
        patch.setattr(sys, "argv", [words[0], *rest])
        with pytest.raises(_Parsed) as caught:
            importlib.import_module(module).main()
    return caught.value.args[0]


def command_lines(block: str) -> list[list[str]]:
    """The words of each command of a block, without shell loops, variables and redirections."""
    commands: list[list[str]] = []
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        commands.append([])
        for word in shlex.split(line, comments=True):
            commands[-1].append(word.removesuffix(";").replace("$seed", "0"))
            if word == "&" or word.endswith(";"):
                commands.append([])
    commands = [[word for word in words if word != "&"] for words in commands]
    for words in commands:
        while words and (re.match(r"[A-Z_0-9]+=", words[0]) or words[0] == "export"):
            del words[0]
    return [words for words in commands if words and words[0] not in ("for", "do", "done", "wait")]


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a command line could not run here, but for data and time."""
    if words[0] in ("curl", "unzip", "pip", "git") or words[1:3] == ["-m", "pip"]:
        return
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            parsed(words, monkeypatch)
    else:
        check_arguments(parsed(words, monkeypatch))


def check_arguments(args: argparse.Namespace) -> None:
    """Files, rows, scales and keys that a command line names are there."""
    opts = args.opts[len(args.opts) % 2 :]  # analyze takes a dataset's name before the overrides
    if config := getattr(args, "config_file", None):
        load_cfg(config, opts)
    else:
        assert not opts, opts
    if getattr(args, "augment", None):
        load_cfg(args.augment)
    scale = getattr(args, "scale", None)
    if isinstance(scale, str) and scale != "SCALE":
        assert (ROOT / "experiments" / "scales" / f"{scale}.yaml").is_file(), scale
    for row in getattr(args, "rows", None) or ():
        assert (ROOT / "configs" / f"{row.partition('@')[0]}.yaml").is_file(), row


@pytest.mark.parametrize(("page", "block"), blocks("bash"))
def test_each_command_is_understood(page, block, stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    commands = command_lines(block)
    assert commands
    for words in commands:
        check_command(words, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_command_in_a_sentence_is_understood(page, stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    for span in re.findall(r"`([^`]+)`", FENCE.sub("", TEXTS[page])):
        is_command = re.match(r"(smallobj \w+|python3? -m (proofs|benchmarks)\.\w+)\s.*--", span)
        if is_command and not re.search(r"\.\.\.|CONFIG", span):
            check_command(span.split(), monkeypatch)


def test_the_quick_start_runs(stand_ins, monkeypatch, capsys):
    """Looking before training, on scenes; training itself is left to other tests."""
    from smallobj_d2.commands import analyze, train_net, visualize

    monkeypatch.chdir(stand_ins)
    lines = [
        words
        for name, block in FENCE.findall(TEXTS[README])
        if name == "bash"
        for words in command_lines(block)
    ]
    (train,) = (w[2:] for w in lines if w[:2] == ["smallobj", "train"] and "--val-json" in w)
    args, overrides = train_net.parser().parse_known_args(train)
    assert (args.json, args.val_json) == (Path("train.json"), Path("val.json"))
    assert "MODEL.ROI_HEADS.NUM_CLASSES" in overrides
    (look,) = (words[2:] for words in lines if words[:2] == ["smallobj", "visualize"])
    small = ["SMALLOBJ.SMALL_AREA", "400.0", "INPUT.MIN_SIZE_TRAIN", "(96,)", "SEED", "0"]
    small += ["MODEL.ROI_HEADS.NUM_CLASSES", "6"]
    assert visualize.main([*look, *small, "--num", "1"]) == 0
    assert (stand_ins / "sheet.png").is_file()
    (ask,) = (w[2:] for w in lines if w[:2] == ["smallobj", "analyze"] and "--augment" in w)
    assert analyze.main(ask) == 0
    assert "small object" in capsys.readouterr().out


def test_dry_runs_run(stand_ins, monkeypatch, capsys):
    from smallobj_d2.commands import reproduce

    monkeypatch.chdir(stand_ins)
    for text in TEXTS.values():
        for name, block in FENCE.findall(text):
            for words in command_lines(block) if name == "bash" else ():
                if words[:2] == ["smallobj", "reproduce"] and "--dry-run" in words:
                    assert reproduce.main(words[2:]) == 0
    assert "seed" in capsys.readouterr().out


# --- Python and YAML


@pytest.mark.skipif(not has_detectron2(), reason="Detectron2 is not installed")
def test_the_readme_works_in_a_detectron2_project(stand_ins, monkeypatch):
    from detectron2.config import CfgNode
    from detectron2.config import get_cfg as detectron2_cfg
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets import register_coco_instances

    monkeypatch.chdir(stand_ins)
    cfg = detectron2_cfg()
    demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    cfg.merge_from_other_cfg(CfgNode({k: v for k, v in demo.items() if k != "SMALLOBJ"}))
    register_coco_instances("readme_train", {}, "train.json", "images/train")
    try:
        cfg.DATASETS.TRAIN = ("readme_train",)
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.SOLVER.IMS_PER_BATCH = (96,), 2
        cfg.DATALOADER.NUM_WORKERS = 0
        names = {"cfg": cfg}
        ours, stock = (
            block
            for name, block in FENCE.findall(TEXTS[README])
            if name == "python" and "detectron2" in block
        )
        exec(ours, names)
        assert len(next(iter(names["MyTrainer"].build_train_loader(cfg)))) == 2
        exec(stock, names)
        assert len(next(iter(names["loader"]))) == 2
    finally:
        DatasetCatalog.remove("readme_train")


def test_the_readme_works_without_a_framework():
    (block,) = (b for n, b in FENCE.findall(TEXTS[README]) if n == "python" and "augment(" in b)
    square = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]
    thing = {"bbox": [10, 10, 10, 10], "area": 100.0, "category_id": 0, "segmentation": square}
    names: dict[str, Any] = {"image": np.zeros((99, 99, 3), np.uint8), "annotations": [thing]}
    exec(block, names)
    assert len(names["annotations"]) == 4


def require_libraries(block: str) -> None:
    """Skip a block that imports a library which is not installed, and name it."""
    for node in ast.walk(ast.parse(block)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for library in (name.partition(".")[0] for name in names):
            if importlib.util.find_spec(library) is None:
                pytest.skip(f"{library} is not installed")


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_each_other_python_block_runs(page, block, stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    if page == README:
        pytest.skip("The tests above run it.")
    if page == Path("docs/large_images.md"):
        pytest.skip("tests/test_engines_predictions.py runs it with a trained model.")
    if page == Path("docs/extending.md"):  # tests/test_extensions.py trains with these
        files = [p.read_text() for p in (ROOT / "tests" / "extensions").glob("*.py")]
        assert block in files
    else:
        require_libraries(block)
        exec(block, {})


def test_the_lightning_block_trains_and_resumes(stand_ins, monkeypatch, tmp_path, forget_datasets):
    """Each batch is the one that a loader without Lightning gives."""
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    import torch

    from smallobj_d2.engines.torchvision import build_train_loader

    monkeypatch.chdir(stand_ins)
    (block,) = (
        b for n, b in FENCE.findall(TEXTS[FRAMEWORKS]) if n == "python" and "Lightning" in b
    )
    names: dict[str, Any] = {}
    exec(block, names)

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, _):
            seen.append([sample["draw"].position for sample in batch])
            return sum(s["image"].float().mean() for s in batch) * self.weight

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = ["SMALLOBJ.DATASETS", '[["frameworks", "train.json", "images/train"]]']
    cfg = load_cfg(
        "configs/orig_aug_multi3x.yaml",
        [*data, "DATASETS.TRAIN", "('frameworks',)", "SEED", "0", "INPUT.MIN_SIZE_TRAIN", "(96,)"]
        + ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"],
    )
    seen: list[list[int]] = []
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "default_root_dir": tmp_path}
    first = lightning.Trainer(max_steps=3, enable_checkpointing=False, **options)
    first.fit(Model(), names["SmallObjectData"](cfg))
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = lightning.Trainer(max_steps=5, enable_checkpointing=False, **options)
    second.fit(Model(), names["SmallObjectData"](cfg), ckpt_path=tmp_path / "last.ckpt")
    loader = build_train_loader(cfg)
    batches = zip(range(5), loader, strict=False)
    assert seen == [[sample["draw"].position for sample in batch] for _, batch in batches]


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_each_yaml_block_is_a_config(page, block, stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    content = yaml.safe_load(block)
    if set(content) == {"datasets"}:  # part of a scale
        scale = yaml.safe_load((ROOT / "experiments" / "scales" / "nuclei.yaml").read_text())
        assert content["datasets"] == scale["datasets"]
        return
    own = str(ROOT / "tests" / "extensions" / "largest.py")
    (stand_ins / "block.yaml").write_text(block.replace("path/to/largest.py", own))
    cfg = load_cfg("block.yaml")
    assert cfg.SMALLOBJ.STRATEGY in STRATEGIES


# --- Tables


def test_the_reference_has_every_key_with_its_default():
    text = TEXTS[Path("docs/reference.md")]
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([^`]+)` \| (.+) \|$", text, re.MULTILINE)
    keys = get_cfg().SMALLOBJ
    assert sorted(key for key, _, _ in rows) == sorted(keys)
    for key, default, meaning in rows:
        assert default.replace('"', "'") == repr(keys[key]), key
        assert len(meaning) > 20


def test_the_architecture_has_the_layers_of_the_import_contract():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (c for c in linter["contracts"] if c["type"] == "layers")
    layers = [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
    text = TEXTS[Path("docs/review/architecture.md")]
    table = text.partition("| modules | hold |")[2].partition("\n\n")[0]
    rows = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table.splitlines()[2:]]
    assert rows == layers[::-1]


def test_the_faq_quotes_messages_as_they_are():
    """Each quoted part of a heading, between its dots, is in one string of the package."""
    source = "\n".join(p.read_text() for p in (ROOT / "smallobj_d2").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    source = re.sub(r"\{[^{}]*\}", "{}", source)
    for heading in re.findall(r'^### "(.*)"$', TEXTS[Path("docs/faq.md")], re.MULTILINE):
        for part in re.split(r"\s*\.\.\.\s*", heading):
            part = re.sub(r"\b\d+\b", "{}", part).strip(" -")
            assert part in source, part
