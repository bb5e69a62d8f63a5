"""The SMALLOBJ keys, on Detectron2's config and on ours."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallobj_d2 import config
from smallobj_d2.config import (
    add_smallobj_config,
    check_cfg,
    config_names,
    get_cfg,
    has_detectron2,
    load_cfg,
    merge_opts,
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


def test_a_config_is_found_by_its_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"orig_aug_multi3x", "beyond/bank"} < {*config_names()}
    assert load_cfg("beyond/bank").SMALLOBJ.SOURCES == "bank"
    (tmp_path / "orig_aug").write_text("SEED: 3")
    assert load_cfg("orig_aug").SEED == 3  # a path comes first


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("orig_aug_multi3", "By name there are: orig_aug_multi3x, "),
        ("configs/orig_aug_multi3x.yaml", "By name there are: orig_aug_multi3x, "),
        ("zzz", "By name there are: aug, aug_oversample_2x, base, baseline, beyond/bank, "),
    ],
)
def test_a_config_that_is_not_there_is_answered_with_those_that_are(
    tmp_path, monkeypatch, config, says
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SmallObjError, match=re.escape(says)):
        load_cfg(config)


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
    (
        "SMALLOBJ: {OVERSAMPLING_FACTOR: 0.5}",
        "OVERSAMPLING_FACTOR is 0.5; it must be from 1 (off) to",
    ),
    ("SMALLOBJ: {AUGMENTATION_PROBABILITY: 1.5}", "AUGMENTATION_PROBABILITY is 1.5"),
    ("SMALLOBJ: {AUGMENTATION_READING: both}", "AUGMENTATION_READING is 'both'; it must be one of"),
    ("SMALLOBJ: {COVERED_LABELS: hidden}", "COVERED_LABELS is 'hidden'; it must be one of"),
    ("SMALLOBJ: {UNREADABLE_IMAGES: ignore}", "UNREADABLE_IMAGES is 'ignore'; it must be one of"),
    ("SMALLOBJ: {SCALE: [0.8, 1.0, 1.2]}", "SCALE is (0.8, 1.0, 1.2); it must be two numbers"),
    (
        "SMALLOBJ: {DATASETS: [[a, b]]}",
        "DATASETS is [['a', 'b']]; it must be a list; each entry is [name,",
    ),
    ("SMALLOBJ: {DATASETS: [3]}", "DATASETS is [3]; it must be a list; each entry is [name,"),
    ('_BASE_: "gone.yaml"', "gone.yaml"),
    ("", "mapping of keys to values"),
    ("- a\n- b", "mapping of keys to values"),
    ("a: [", "is not valid YAML"),
    ('_BASE_: "a.yaml"', "_BASE_ a.yaml leads back to itself"),
    ("_BASE_: 3", "_BASE_ is 3; it must be the name of a file"),
    ('_BASE_: "."', "cannot be read: Is a directory"),
    ("21: 3", "21 is not a key; keys are strings"),
    ("SOLVER: {21: 3}", "21 is not a key"),
    ("a: &a [*a]", "an alias of YAML that repeats itself"),
    ("a: &a {b: *a}", "an alias of YAML that repeats itself"),
    (
        "a0: &a0 [1]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 19)),
        "an alias of YAML that repeats itself",
    ),
    ("a: " + "[" * 5000, "is nested too deeply"),
    ("a: " + "[" * 50 + "]" * 50, "values more than 20 deep"),
    ("SOLVER: {MAX_ITER: 2020-01-01}", "datetime.date"),
    ("SOLVER: {IMS_PER_BATCH: null}", "SOLVER.IMS_PER_BATCH is None; it must be of type int"),
    ("DATASETS: {TEST: null}", "DATASETS.TEST is None; it must be of type tuple"),
    ("SOLVER: {IMS_PER_BATCH: 0}", "IMS_PER_BATCH is 0; it must be a whole number, 1 or more"),
    ("SOLVER: {IMS_PER_BATCH: -2}", "IMS_PER_BATCH is -2; it must be a whole number, 1 or more"),
    ("SOLVER: {CHECKPOINT_PERIOD: 0}", "CHECKPOINT_PERIOD is 0; it must be a whole number, 1 or"),
    (
        "DATALOADER: {NUM_WORKERS: -1}",
        "NUM_WORKERS is -1; it must be a whole number, from 0 to 1024",
    ),
    ("INPUT: {MIN_SIZE_TRAIN: []}", "INPUT.MIN_SIZE_TRAIN is (); it must be whole numbers"),
    ("SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR is nan; it must be a number"),
    ("SOLVER: {STEPS: [30, 20]}", "whole numbers of iterations, 1 or more, in ascending order"),
    ("INPUT: {MASK_FORMAT: rle}", "INPUT.MASK_FORMAT is 'rle'; it must be one of"),
    ("SOLVER: {NESTEROV: True, MOMENTUM: 0.0}", "it needs a SOLVER.MOMENTUM above 0"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_FILES, ids=range(len(WRONG_FILES)))
def test_a_wrong_file_gives_one_clear_line(engine, tmp_path, text, message):
    with pytest.raises(SmallObjError, match=re.escape(message)) as e:
        load_cfg(write(tmp_path, text))
    assert "\n" not in str(e.value)
    assert len(str(e.value).replace(str(tmp_path), "")) < 250


def test_files_that_lead_back_to_each_other_are_refused(engine, tmp_path):
    write(tmp_path, '_BASE_: "a.yaml"', "b.yaml")
    with pytest.raises(SmallObjError, match="leads back to itself"):
        load_cfg(write(tmp_path, '_BASE_: ["b.yaml"]'))


def test_a_file_that_is_no_text_is_named(engine, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"SOLVER: \xff\xfe")
    with pytest.raises(SmallObjError, match=r"a\.yaml is not text in UTF-8 \(byte 8\)"):
        load_cfg(path)


def test_anchors_and_aliases_of_ordinary_use_are_read(engine, tmp_path):
    path = write(tmp_path, "VERSION: 2\nSOLVER: {STEPS: &s [3, 4]}\nINPUT: {MIN_SIZE_TRAIN: *s}")
    assert load_cfg(path).INPUT.MIN_SIZE_TRAIN == (3, 4)


def test_a_path_may_begin_at_home(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "VERSION: 2\nSEED: 5")
    datasets = str([["mine", "~/a.json", "~/images"]])
    opts = ["OUTPUT_DIR", "~/out", "MODEL.WEIGHTS", "~/w.pth", "SMALLOBJ.DATASETS", datasets]
    cfg = load_cfg("~/a.yaml", opts)
    assert cfg.SEED == 5
    assert f"{tmp_path}/out" == cfg.OUTPUT_DIR
    assert f"{tmp_path}/w.pth" == cfg.MODEL.WEIGHTS
    assert [["mine", f"{tmp_path}/a.json", f"{tmp_path}/images"]] == cfg.SMALLOBJ.DATASETS


WRONG_VALUES = [
    *(
        "-1",
        "0",
        "1",
        "-3",
        "1e9",
        "1e300",
        "-2.5",
        "float",
        "'a'",
        "None",
        "True",
        "[]",
        "()",
        "{}",
    ),
    *(
        "[None]",
        "(1,)",
        "('a',)",
        "[[]]",
        "[[1]]",
        "[-1, 5]",
        "nan",
        "10**9",
        "99999999999999999999",
    ),
    *("{'a': 1}", "{[]: 1}", "[" * 300, "9" * 5000, "", "\0", "a\nb", "set()", "b'a'", "1j", "..."),
]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.FORMAT", "rgb"], r"INPUT\.FORMAT is 'rgb'; it must be one of \('BGR', 'RGB'\)"),
        (["INPUT.RANDOM_FLIP", "both"], r"INPUT\.RANDOM_FLIP is 'both'"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "chioce"], r"it must be one of \('choice', 'range'\)"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "'range' it must be two numbers"),
        (["MODEL.DEVICE", "gpu"], r"MODEL\.DEVICE is 'gpu'; it must be cpu or cuda"),
    ],
)
def test_words_that_no_engine_knows_are_refused_when_a_config_is_read(engine, opts, message):
    with pytest.raises(SmallObjError, match=message):
        load_cfg(ROOT / "configs" / "baseline.yaml", opts)


@given(data=st.data())
@settings(max_examples=400)
def test_any_value_of_any_key_is_refused_in_one_line_or_is_valid(data):
    base = load_cfg(ROOT / "configs" / "baseline.yaml")
    key = data.draw(st.sampled_from(sorted(config.flatten(base))))
    value = data.draw(st.sampled_from(WRONG_VALUES))
    cfg = base.clone()
    cfg.defrost()
    error = ""
    try:
        merge_opts(cfg, [key, value])
        check_cfg(cfg)
    except SmallObjError as e:
        error = str(e)
    assert len(error) < 500
    assert error.isprintable()
    values = config.flatten(cfg)
    assert error or all(rule.holds(values[k]) for k, rule in config.RULES.items())


def test_the_rules_hold_for_all_configs_and_name_keys_that_are_there():
    known = config.flatten(get_cfg())
    assert set(config.RULES) <= set(known)
    numeric = {
        k
        for k, v in config.flatten(torchvision_cfg()).items()
        if isinstance(v, int | float | tuple | list) and not isinstance(v, bool)
    }
    unruled = {"VERSION", "SOLVER.WEIGHT_DECAY_NORM"}
    assert numeric - set(config.RULES) <= unruled | {
        k for k in numeric if k.endswith(("IN_FEATURES", "OUT_FEATURES"))
    }


def test_a_missing_file_is_named(engine, tmp_path):
    with pytest.raises(SmallObjError, match=r"no config file .*nothing\.yaml"):
        load_cfg(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SMALLOBJ.COPIS", "2"], "There is SMALLOBJ.COPIES. docs/reference.md has the keys"),
        (["SOLVER.MAX_ITR", "2"], "there is no key SOLVER.MAX_ITR"),
        (["SMALLOBJ.COPIES", "two"], "SMALLOBJ.COPIES must be of type int"),
        (["SOLVER", "{}"], "SOLVER is a group of keys"),
        (["MODEL.DEVICE.c", "2"], "there is no key MODEL.DEVICE.c"),
        (["SMALLOBJ.COPIES"], "pairs of KEY VALUE, but their number is odd: SMALLOBJ.COPIES"),
        (["SMALLOBJ.OVERSAMPLING_FACTOR", "0.0"], "it must be from 1 (off) to 1000"),
        (["SMALLOBJ.SOURCES", "banks"], "SOURCES is 'banks'; it must be one of ('image', 'bank')"),
        (["SMALLOBJ.BANK_IMAGES", "0"], "BANK_IMAGES is 0; it must be a whole number, 1 or more"),
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
