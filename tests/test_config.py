"""The SMALLOBJ keys, on Detectron2's config and on ours."""

import re
from pathlib import Path
from typing import Any

import pytest

from smallobj_d2 import config
from smallobj_d2.config import (
    add_smallobj_config,
    get_cfg,
    has_detectron2,
    load_cfg,
    torchvision_cfg,
)
from smallobj_d2.errors import SmallObjError

ROOT = Path(__file__).parents[1]

needs_detectron2 = pytest.mark.skipif(not has_detectron2(), reason="detectron2 is not installed")


@pytest.fixture(params=["here", "without detectron2"])
def engine(request, monkeypatch):
    """Config loading as it is on this machine, and as it is where Detectron2 is absent."""
    if request.param == "without detectron2":
        monkeypatch.setattr(config, "has_detectron2", lambda: False)
    return request.param


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in node.items():
        out |= (
            leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return out


# --- defaults


def test_defaults_are_the_papers_with_everything_off():
    s = get_cfg().SMALLOBJ
    assert s.SMALL_AREA == 32**2
    assert s.OVERSAMPLING_FACTOR == 1
    assert not s.COPY_PASTE
    assert s.AUGMENTATION_PROBABILITY == 0.5
    assert (s.STRATEGY, s.COPIES) == ("all", 1)
    assert s.SCALE == (0.8, 1.2)
    assert s.ROTATION == (-15, 15)
    assert s.MARGIN == 5
    assert not s.ALLOW_OVERLAP
    assert s.BLUR == 0
    assert s.REQUIRE_CONNECTED
    assert s.REQUIRE_INSIDE
    assert s.MAX_COVERED < 1
    assert not s.PASTE_BOXES


def test_every_key_is_explained_where_it_is_added():
    lines = (ROOT / "smallobj_d2" / "config.py").read_text().splitlines()
    for key in get_cfg().SMALLOBJ:
        (at,) = [i for i, line in enumerate(lines) if re.match(rf"    s\.{key} = ", line)]
        assert lines[at - 1].strip().startswith(("#", "s.")) or "#" in lines[at], key


@needs_detectron2
def test_our_defaults_are_detectron2s():
    from detectron2.config import get_cfg as detectron2_cfg

    theirs, ours = leaves(detectron2_cfg()), leaves(torchvision_cfg())
    assert ours == {key: theirs.get(key, "is no key of Detectron2's") for key in ours}
    assert {k: type(v) for k, v in ours.items()} == {k: type(theirs[k]) for k in ours}


@needs_detectron2
def test_our_config_is_detectron2s_and_one_node_more():
    from detectron2.config import CfgNode
    from detectron2.config import get_cfg as detectron2_cfg

    cfg = get_cfg()
    assert type(cfg) is type(cfg.SMALLOBJ) is CfgNode
    cfg.pop("SMALLOBJ")
    assert cfg == detectron2_cfg()


def test_the_node_is_the_same_with_and_without_detectron2():
    cfg = torchvision_cfg()
    add_smallobj_config(cfg)
    assert dict(cfg.SMALLOBJ) == dict(get_cfg().SMALLOBJ)


# --- reading


def test_base_files_and_overrides_are_read_in_their_order(engine, tmp_path):
    write(tmp_path, "VERSION: 2\nSOLVER: {MAX_ITER: 1, BASE_LR: 0.5}", "base.yaml")
    write(tmp_path, '_BASE_: "base.yaml"\nSOLVER: {MAX_ITER: 2}', "middle.yaml")
    path = write(tmp_path, '_BASE_: "middle.yaml"\nSMALLOBJ: {COPIES: 3, SCALE: [0.5, 2.0]}')
    cfg = load_cfg(path, ["SMALLOBJ.COPIES", "4", "SMALLOBJ.STRATEGY", "single"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (2, 0.5)
    assert (cfg.SMALLOBJ.COPIES, cfg.SMALLOBJ.STRATEGY) == (4, "single")
    assert tuple(cfg.SMALLOBJ.SCALE) == (0.5, 2.0)
    assert cfg.is_frozen()


def test_datasets_of_ones_own_stand_in_the_config(engine, tmp_path):
    path = write(tmp_path, 'VERSION: 2\nSMALLOBJ: {DATASETS: [["mine", "a.json", "images"]]}')
    assert load_cfg(path).SMALLOBJ.DATASETS == [["mine", "a.json", "images"]]
    override = ["SMALLOBJ.DATASETS", '[["one","a.json","b"],["two","c.json","d"]]']
    assert [entry[0] for entry in load_cfg(path, override).SMALLOBJ.DATASETS] == ["one", "two"]


# --- errors

WRONG_FILES = [
    ("SMALLOBJ: {COPIS: 2}", "there is no key SMALLOBJ.COPIS"),
    ("SMALOBJ: {COPIES: 2}", "there is no key SMALOBJ"),
    ("SOLVER: {MAX_ITR: 2}", "there is no key SOLVER.MAX_ITR"),
    ("SMALLOBJ: {COPIES: two}", "SMALLOBJ.COPIES must be of type int, like 1; two is"),
    ("SMALLOBJ: {OVERSAMPLING_FACTOR: 2}", "must be of type float, like 1.0; 2 is of type int"),
    ("SMALLOBJ: 3", "SMALLOBJ is a group of keys"),
    ("SMALLOBJ: {OVERSAMPLING_FACTOR: 0.5}", "OVERSAMPLING_FACTOR is 0.5; it must be 1 "),
    ("SMALLOBJ: {AUGMENTATION_PROBABILITY: 1.5}", "AUGMENTATION_PROBABILITY is 1.5"),
    ("SMALLOBJ: {AUGMENTATION_READING: both}", "AUGMENTATION_READING is 'both'; it must be one of"),
    ("SMALLOBJ: {COVERED_LABELS: hidden}", "COVERED_LABELS is 'hidden'; it must be one of"),
    ("SMALLOBJ: {UNREADABLE_IMAGES: ignore}", "UNREADABLE_IMAGES is 'ignore'; it must be one of"),
    ("SMALLOBJ: {SCALE: [0.8, 1.0, 1.2]}", "SCALE is (0.8, 1.0, 1.2); it must be two numbers"),
    ("SMALLOBJ: {DATASETS: [[a, b]]}", "['a', 'b']; each entry is [name, json file, image folder]"),
    ("SMALLOBJ: {DATASETS: [3]}", "holds 3; each entry is"),
    ('_BASE_: "gone.yaml"', "gone.yaml"),
    ("", "mapping of keys to values"),
    ("- a\n- b", "mapping of keys to values"),
    ("a: [", "is not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_FILES)
def test_a_wrong_file_gives_one_clear_line(engine, tmp_path, text, message):
    with pytest.raises(SmallObjError, match=re.escape(message)) as e:
        load_cfg(write(tmp_path, text))
    assert "\n" not in str(e.value)
    assert len(str(e.value).replace(str(tmp_path), "")) < 250


def test_a_missing_file_is_named(engine, tmp_path):
    with pytest.raises(SmallObjError, match=r"no config file .*nothing\.yaml"):
        load_cfg(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SMALLOBJ.COPIS", "2"], "there is no key SMALLOBJ.COPIS"),
        (["SOLVER.MAX_ITR", "2"], "there is no key SOLVER.MAX_ITR"),
        (["SMALLOBJ.COPIES", "two"], "SMALLOBJ.COPIES must be of type int"),
        (["SMALLOBJ.COPIES"], "pairs of KEY VALUE, but there are 1 words"),
        (["SMALLOBJ.OVERSAMPLING_FACTOR", "0.0"], "it must be 1 (off) or more"),
        (["SMALLOBJ.SOURCES", "banks"], "SOURCES is 'banks'; it must be one of ('image', 'bank')"),
        (["SMALLOBJ.BANK_IMAGES", "0"], "BANK_IMAGES is 0; it must be 1 or more"),
    ],
)
def test_a_wrong_override_gives_one_clear_line(engine, opts, message):
    with pytest.raises(SmallObjError, match=re.escape(message)) as e:
        load_cfg(ROOT / "configs" / "baseline.yaml", opts)
    assert "\n" not in str(e.value)


def test_without_detectron2_a_key_that_torchvision_cannot_honour_is_refused(monkeypatch):
    monkeypatch.setattr(config, "has_detectron2", lambda: False)
    opts = ["MODEL.ROI_BOX_CASCADE_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    with pytest.raises(SmallObjError, match="only keys torchvision can honour"):
        load_cfg(ROOT / "configs" / "baseline.yaml", opts)
