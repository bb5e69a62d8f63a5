"""The ``SMALLOBJ`` keys, and a config that holds them with or without Detectron2.

Every key is documented where it is added, below. ``docs/reference.md`` lists them, and
``docs/review/fidelity.md`` says which statement of the paper each one stands for.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from fvcore.common.config import CfgNode

from smallobj_d2.errors import SmallObjError, printable
from smallobj_d2.registry import import_modules
from smallobj_d2.sizes import SMALL_AREA

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
"""What holds ``configs/`` and ``experiments/``: the package in a wheel, else the checkout."""
CONFIGS = ROOT / "configs"
EXPERIMENTS = ROOT / "experiments"


def add_smallobj_config(cfg: CfgNode) -> None:
    """Add the ``SMALLOBJ`` node with its defaults to a Detectron2 config, in place.

    The defaults are the paper's, with oversampling and copy-paste switched off.
    """
    node = type(cfg)  # Detectron2 has a CfgNode of its own
    s = cfg.SMALLOBJ = node()

    # Your own datasets in COCO format: a list of [name, json file, image folder]. The names can
    # then stand in DATASETS.TRAIN and DATASETS.TEST.
    s.DATASETS = []
    # Your own modules to import first, by name or as paths of .py files: they register the
    # strategies, repeat-factor functions, mappers and engines that other keys then name.
    s.IMPORTS = []
    # What counts as small: mask area below this many pixels of the original image (Table 1).
    s.SMALL_AREA = SMALL_AREA
    # Evaluation also gives AP and recall between these: sides of a square of an object's area, in
    # pixels of the original image.
    s.SIZE_LIMITS = (8, 16, 32, 64, 128, 256)
    # Names of the function that gives repeat factors per image, and of the mapper.
    s.SAMPLER = "SmallObjectOversampling"
    s.MAPPER = "SmallObjectMapper"

    # --- Oversampling (sections 4 and 5.1, Table 3)
    # How often a small-object image is drawn for each time another image is; 1 is off.
    s.OVERSAMPLING_FACTOR = 1.0

    # --- Which draws are augmented (section 5.2, Table 4)
    # Copy-paste on or off.
    s.COPY_PASTE = False
    # The share of the draws of small-object images that are augmented.
    s.AUGMENTATION_PROBABILITY = 0.5
    # "probability": each draw by chance (section 6.2). "paired": in each epoch exactly that share
    # of an image's draws, so that factor 2 and 0.5 keep one original and one copy (section 5.2).
    s.AUGMENTATION_READING = "probability"
    # False: every augmented draw gets new pastes. True: an image has one augmented copy, the
    # same at every draw, as when copies are made offline once.
    s.ONE_COPY_PER_IMAGE = False

    # --- Choosing what is copied (sections 4 and 5.3, Tables 5 to 7)
    # "single": one small object. "multiple": several. "all": each one.
    s.STRATEGY = "all"
    # How often each chosen object is pasted.
    s.COPIES = 1
    # "multiple" takes this share of the objects that may be copied, but two where there are two.
    s.MULTIPLE_SHARE = 0.5
    # Only objects that are not occluded may be copied. Three criteria, each with its switch:
    # the mask is one connected piece,
    s.REQUIRE_CONNECTED = True
    # the image border does not cut it off,
    s.REQUIRE_INSIDE = True
    # and no other instance covers it. A neighbour may claim this share of the mask at most (hand
    # drawn outlines overlap by a pixel or two); 1 switches the criterion off.
    s.MAX_COVERED = 0.1
    # Not in the paper: let annotations without masks be pasted as upright rectangles.
    s.PASTE_BOXES = False

    # --- Jitter (section 4), uniform in these ranges
    s.SCALE = (0.8, 1.2)
    s.ROTATION = (-15.0, 15.0)  # degrees

    # --- Placing (sections 4 and 5.4, Table 8)
    # Pixels between a pasted object and the image border.
    s.MARGIN = 5
    # True: paste anywhere inside the margin, over whatever is there.
    s.ALLOW_OVERLAP = False
    # Free pixels between the masks of a pasted object and of any other instance, where overlap is
    # not allowed. 0 keeps masks apart whichever way their outlines are rasterized.
    s.GAP = 0
    # What an overlap does to the label below: "visible": the covered part leaves the mask, and a
    # fully covered instance leaves the image. "untouched": nothing.
    s.COVERED_LABELS = "visible"
    # No image gets more pastes than this; what is over it is counted and logged.
    s.MAX_PASTES = 300

    # --- Blending (section 5.4, Table 8)
    # Kernel size of the Gaussian that softens the pasted edge: 0 (hard edge), 3, 5, ...
    s.BLUR = 0

    # --- Beyond the paper; all off by default
    # "image": objects are copied within their image. "bank": objects of another training image,
    # chosen at random for each draw, are pasted.
    s.SOURCES = "image"
    # Of how many training images the bank keeps objects.
    s.BANK_IMAGES = 5000
    # Which images are augmented: "small" (small-object images) or "all".
    s.AUGMENTED_IMAGES = "small"

    # --- Speed
    # Resize with OpenCV instead of Pillow where an image is enlarged: much faster, and no pixel
    # differs by more than 2 of 255.
    s.FAST_RESIZE = False

    # --- Training
    # An image that cannot be read: "stop" the run with its name, or "skip" it, count it, list it.
    s.UNREADABLE_IMAGES = "stop"


def has_detectron2() -> bool:
    """Whether Detectron2 can be imported here."""
    return find_spec("detectron2") is not None


def get_cfg() -> CfgNode:
    """A config with every key that the YAML files under ``configs/`` use, ``SMALLOBJ`` included.

    With Detectron2 it is Detectron2's own config plus ``SMALLOBJ``. Without, it has the keys that
    the torchvision engine reads, under the same names and with the same defaults.
    """
    if has_detectron2():
        from detectron2.config import get_cfg as detectron2_cfg

        cfg = detectron2_cfg()
    else:
        cfg = torchvision_cfg()
    add_smallobj_config(cfg)
    return cfg


def config_names() -> list[str]:
    """The names of the configs that come with the package: ``orig_aug``, ``beyond/bank``."""
    files = (p.relative_to(CONFIGS) for p in CONFIGS.rglob("*.yaml"))
    return sorted(p.with_suffix("").as_posix() for p in files)


def find_config(config: str | Path) -> Path:
    """The file of a config.

    Args:
        config: a path, or one of `config_names`.

    Raises:
        SmallObjError: there is none; it names those that are spelled alike, or all.
    """
    path, names = Path(config).expanduser(), config_names()
    if path.is_file():
        return path
    if str(config) in names:
        return CONFIGS / f"{config}.yaml"
    word = str(config).removeprefix("configs/").removesuffix(".yaml")
    known = ", ".join(get_close_matches(word, names) or names)
    raise SmallObjError(f"There is no config file {path}. By name there are: {known}.")


def load_cfg(config_file: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file over the defaults, then ``KEY VALUE`` pairs over that, and freeze.

    Args:
        config_file: its path, or the name of a config of the package, such as ``orig_aug``.
        opts: the pairs.

    Raises:
        SmallObjError: the file or a key does not exist, a value of the wrong type or size.
    """
    cfg = get_cfg()
    path = find_config(config_file)
    _require_plain(path, ())
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except Exception as e:  # whatever the content made yaml, yacs, fvcore or Detectron2 do
        raise SmallObjError(printable(f"{path}: {_explain(e)}")) from e
    merge_opts(cfg, opts)
    check_cfg(cfg)
    _expand_home(cfg)
    import_modules(cfg.SMALLOBJ.IMPORTS)
    cfg.freeze()
    return cfg


def _expand_home(cfg: CfgNode) -> None:
    """Let paths begin with ``~``, as in a shell."""
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    cfg.MODEL.WEIGHTS = os.path.expanduser(cfg.MODEL.WEIGHTS)
    cfg.SMALLOBJ.DATASETS = [
        [name, *map(os.path.expanduser, paths)] for name, *paths in cfg.SMALLOBJ.DATASETS
    ]


_LARGEST_FILE = 1 << 18
_MOST_VALUES = 10_000
_DEEPEST = 20


def _require_plain(path: Path, above: tuple[Path, ...]) -> None:
    """Refuse a config file, or a ``_BASE_`` of one, that the readers below could not end with."""
    label = str(above[0]) if above else str(path)
    label += f": its _BASE_ {path}" if above else ""
    try:
        too_large = path.stat().st_size > _LARGEST_FILE
        content = None if too_large else yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise SmallObjError(f"{label} is not there.") from e
    except OSError as e:
        raise SmallObjError(f"{label} cannot be read: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise SmallObjError(f"{label} is not text in UTF-8 (byte {e.start}).") from e
    except RecursionError as e:
        raise SmallObjError(f"{label} is nested too deeply.") from e
    except (yaml.YAMLError, ValueError) as e:
        raise SmallObjError(f"{label} is not valid YAML: {_one_line(e)}") from e
    if too_large:
        raise SmallObjError(f"{label} is larger than a config file can be (256 KiB).")
    if not isinstance(content, dict):
        raise SmallObjError(f"{label}: a config file is a mapping of keys to values, not this.")
    _require_small(content, label)
    bases = content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise SmallObjError(f"{label}: _BASE_ is {base!r:.80}; it must be the name of a file.")
        if base.startswith(("http://", "https://")):
            continue
        below = path.parent / Path(base).expanduser()
        if below.resolve() in (p.resolve() for p in (*above, path)):
            raise SmallObjError(f"{label}: _BASE_ {base} leads back to itself.")
        if len(above) == _DEEPEST:
            raise SmallObjError(f"{label}: a chain of more than {_DEEPEST} files by _BASE_.")
        _require_plain(below, (*above, path))


def _require_small(content: dict[Any, Any], label: str) -> None:
    """Count what aliases stand for, without ever writing it out."""
    count = 0
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    raise SmallObjError(f"{label}: {key!r:.80} is not a key; keys are strings.")
            node = list(node.values())
        if isinstance(node, list | tuple | set):
            count += len(node)
            if depth == _DEEPEST or count > _MOST_VALUES:
                raise SmallObjError(
                    f"{label} holds more than a config can: values more than {_DEEPEST} deep or "
                    f"over {_MOST_VALUES}, or an alias of YAML that repeats itself."
                )
            waiting.extend((value, depth + 1) for value in node)


def merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merge ``KEY VALUE`` pairs from a command line, in place."""
    if len(opts) % 2:
        raise SmallObjError(
            f"Overrides are pairs of KEY VALUE, but their number is odd: {' '.join(opts)}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            node = cfg
            for part in key.split("."):
                if not isinstance(node, CfgNode) or part not in node:
                    raise SmallObjError(_no_key(key))
                node = node[part]
            if isinstance(node, CfgNode):
                raise SmallObjError(f"{key} is a group of keys and cannot be {value!s:.80}.")
            if isinstance(node, float) and re.fullmatch(r"[+-]?\d{1,15}", str(value)):
                value = f"{value}.0"  # a whole number is a number, too
            cfg.merge_from_list([key, value])
        except SmallObjError as e:
            raise SmallObjError(printable(f"Override {key} {value!s:.80}: {e}")) from e
        except Exception as e:  # whatever a value made Python's own reader of literals do
            raise SmallObjError(printable(f"Override {key} {value!s:.80}: {_explain(e)}")) from e


_MISMATCH = re.compile(
    r"Type mismatch \(<class '(.+?)'> vs\. <class '(.+?)'>\) "
    r"with values \((.*) vs\. (.*)\) for config key: (\S+)",
    re.DOTALL,
)


def _explain(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    if mismatch := _MISMATCH.search(text):
        wanted, given, default, value, key = mismatch.groups()
        if wanted.endswith("CfgNode"):
            return f"{key} is a group of keys and cannot be {value!s:.80}."
        return f"{key} must be of type {wanted}, like {default}; {value:.80} is of type {given}."
    if "Non-existent" in text:
        return _no_key(text.rsplit(":", 1)[-1].strip())
    if "not a valid type" in text:  # yacs names the types that are
        return _one_line(text.partition("; valid types")[0]) + "."
    if isinstance(error, MemoryError | RecursionError):
        return "it is nested too deeply."
    named = text if isinstance(error, SmallObjError | AssertionError) else repr(error)
    return f"it cannot be used as a config: {_one_line(named)}"


def _no_key(key: str) -> str:
    more = "" if has_detectron2() else " (without Detectron2, only keys torchvision can honour)"
    near = get_close_matches(key, flatten(get_cfg()), 2, 0.8)
    like = f" There is {' and '.join(near)}." if near else ""
    own = " docs/reference.md has the keys of SMALLOBJ." if key.startswith("SMALLOBJ") else ""
    return f"there is no key {key}{more}.{like}{own}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]


# --- What values mean something


class Rule(NamedTuple):
    """What values a key may have."""

    holds: Callable[[Any], object]
    words: str


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _whole(least: int, most: float = 2**31) -> Rule:
    def holds(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    words = f"{least} or more" if most >= 1 << 16 else f"from {least} to {most:g}"
    return Rule(holds, f"must be a whole number, {words}")


def _from(least: float, most: float = 1e30, words: str = "") -> Rule:
    words = words or f"must be a number, {least:g} or more"
    return Rule(lambda value: _number(value) and least <= value <= most, words)


def _each(rule: Rule, length: int | None = None, *, empty: bool = False) -> Rule:
    def holds(value: object) -> bool:
        if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
            return False
        return bool(value or empty) and all(rule.holds(v) for v in value)

    number = "a list" if length is None else f"{length} values"
    return Rule(holds, f"must be {number}; each {rule.words}")


def _one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"must be one of {choices}")


_NUMBER = _from(-1e30, words="must be a number")
_PAIR = Rule(_each(_NUMBER, 2).holds, "must be two numbers")
_SHARE = _from(0, 1, "must be a share, from 0 to 1")
_SIDE = _whole(0, 1 << 15)
_POSITIVE = _from(1e-9, words="must be a number above 0")
_SIZES = _whole(1, 1 << 16)
_WORDS = Rule(lambda value: isinstance(value, str), "must be a string")
_NAMES = _each(_WORDS, empty=True)

RULES: dict[str, Rule] = {
    "SEED": _from(
        -(2**63), 2**63 - 1, "must be a whole number of 64 bits; below 0, a random one is chosen"
    ),
    "OUTPUT_DIR": Rule(lambda value: isinstance(value, str) and value, "must name a folder"),
    "DATASETS.TRAIN": _NAMES,
    "DATASETS.TEST": _NAMES,
    "DATALOADER.NUM_WORKERS": _whole(0, 1024),
    "DATALOADER.REPEAT_THRESHOLD": _SHARE,
    "INPUT.MIN_SIZE_TRAIN": Rule(
        _each(_SIDE).holds,
        "must be whole numbers of pixels, at least one of them (0 is no resizing)",
    ),
    "INPUT.MAX_SIZE_TRAIN": _SIZES,
    "INPUT.MIN_SIZE_TEST": _SIDE,
    "INPUT.MAX_SIZE_TEST": _SIZES,
    "INPUT.FORMAT": _one_of("BGR", "RGB"),
    "INPUT.MASK_FORMAT": _one_of("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": _one_of("choice", "range"),
    "INPUT.RANDOM_FLIP": _one_of("horizontal", "vertical", "none"),
    "MODEL.DEVICE": Rule(
        lambda value: isinstance(value, str) and re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", value),
        "must be cpu or cuda, or another kind of device that torch knows",
    ),
    "MODEL.PIXEL_MEAN": _each(_NUMBER),
    "MODEL.PIXEL_STD": _each(_POSITIVE),
    "MODEL.BACKBONE.FREEZE_AT": _whole(0),
    "MODEL.RESNETS.DEPTH": _whole(1),
    "MODEL.RESNETS.WIDTH_PER_GROUP": _SIZES,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _SIZES,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _SIZES,
    "MODEL.FPN.OUT_CHANNELS": _SIZES,
    "MODEL.ANCHOR_GENERATOR.SIZES": _each(_each(_POSITIVE)),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _each(_each(_POSITIVE)),
    "MODEL.ANCHOR_GENERATOR.OFFSET": _from(0, 1, "must be from 0 to 1"),
    "MODEL.RPN.IOU_THRESHOLDS": _each(_SHARE),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _whole(1),
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.SMOOTH_L1_BETA": _from(0),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _whole(1),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _whole(1),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _whole(1),
    "MODEL.RPN.POST_NMS_TOPK_TEST": _whole(1),
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": _SIZES,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _each(_SHARE),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _whole(1),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _NUMBER,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_BOX_HEAD.NUM_FC": _whole(0),
    "MODEL.ROI_BOX_HEAD.FC_DIM": _SIZES,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _from(0),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": _SIZES,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": _whole(0),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": _whole(0),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _SIZES,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": _SIZES,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": _whole(0),
    "SOLVER.MAX_ITER": _whole(1),
    "SOLVER.BASE_LR": _from(0),
    "SOLVER.MOMENTUM": _from(0),
    "SOLVER.WEIGHT_DECAY": _from(0),
    "SOLVER.GAMMA": _from(0),
    "SOLVER.STEPS": Rule(
        lambda value: _each(_whole(1), empty=True).holds(value) and list(value) == sorted({*value}),
        "must be a list of whole numbers of iterations, 1 or more, in ascending order",
    ),
    "SOLVER.WARMUP_FACTOR": _from(0),
    "SOLVER.WARMUP_ITERS": _whole(0),
    "SOLVER.CHECKPOINT_PERIOD": _whole(1),
    "SOLVER.IMS_PER_BATCH": _whole(1),
    "SOLVER.BIAS_LR_FACTOR": _from(0),
    "TEST.EVAL_PERIOD": _whole(0),
    "TEST.DETECTIONS_PER_IMAGE": _whole(1),
    "SMALLOBJ.DATASETS": Rule(
        _each(_each(_WORDS, 3), empty=True).holds,
        "must be a list; each entry is [name, json file, image folder]",
    ),
    "SMALLOBJ.IMPORTS": Rule(
        _NAMES.holds,
        "must be a list; each entry is the name of a module or the path of a .py file",
    ),
    "SMALLOBJ.SMALL_AREA": _from(0),
    "SMALLOBJ.SIZE_LIMITS": Rule(
        lambda value: _each(_POSITIVE).holds(value) and [*value] == sorted(set(value)),
        "must be a list of numbers above 0, ascending",
    ),
    "SMALLOBJ.OVERSAMPLING_FACTOR": _from(1, 1000, "must be from 1 (off) to 1000"),
    "SMALLOBJ.AUGMENTATION_PROBABILITY": _SHARE,
    "SMALLOBJ.AUGMENTATION_READING": _one_of("probability", "paired"),
    "SMALLOBJ.SCALE": _PAIR,
    "SMALLOBJ.ROTATION": _PAIR,
    "SMALLOBJ.COVERED_LABELS": _one_of("visible", "untouched"),
    "SMALLOBJ.SOURCES": _one_of("image", "bank"),
    "SMALLOBJ.BANK_IMAGES": _whole(1),
    "SMALLOBJ.AUGMENTED_IMAGES": _one_of("small", "all"),
    "SMALLOBJ.UNREADABLE_IMAGES": _one_of("stop", "skip"),
}
"""What is checked when a config is read. Copy-paste checks the numbers of its keys itself."""

_MAY_BE_NONE = ("SOLVER.WEIGHT_DECAY_NORM",)


def check_cfg(cfg: CfgNode) -> None:
    """Refuse values that mean nothing.

    Raises:
        SmallObjError: naming the key, its value, and what it may be.
    """
    values = flatten(cfg)
    for key, default in flatten(get_cfg()).items():
        if values.get(key, default) is None and default is not None and key not in _MAY_BE_NONE:
            raise SmallObjError(
                f"{key} is None; it must be of type {type(default).__name__}, like {default!r}."
            )
    for key, rule in RULES.items():
        if key in values and not rule.holds(values[key]):
            raise SmallObjError(f"{key} is {values[key]!r:.80}; it {rule.words}.")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise SmallObjError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}; with INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' it must "
            "be two numbers, the lowest and the highest."
        )
    if cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        raise SmallObjError("SOLVER.NESTEROV is True; it needs a SOLVER.MOMENTUM above 0.")


def changed(cfg: Any, values: Mapping[str, Any]) -> Any:
    """A frozen copy of a config with other values, by their full keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in values.items():
        *groups, last = key.split(".")
        reduce(getattr, groups, cfg)[last] = value
    cfg.freeze()
    return cfg


def unset_variable(weights: str) -> str:
    """The environment variable that a value of MODEL.WEIGHTS needs and that is not set, or ""."""
    unset = re.match(r"\$\{?(\w+)", os.path.expandvars(weights))
    return unset[1] if unset else ""


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All values of a config, or of one as plain dicts, by their full keys."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def portable(cfg: CfgNode) -> CfgNode:
    """What can be read without Detectron2 of a config that the torchvision engine can honour.

    It has Detectron2's other keys at their defaults.
    """

    def shared(node: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: shared(value, known[key]) if isinstance(value, dict) else value
            for key, value in node.items()
            if key in known
        }

    return CfgNode(shared(cfg, {**torchvision_cfg(), "SMALLOBJ": cfg.SMALLOBJ}))


def torchvision_cfg() -> CfgNode:
    """Detectron2's keys and defaults, as far as the torchvision engine honours them.

    A test compares them with Detectron2's own where it is installed.
    """
    defaults: dict[str, Any] = {
        "VERSION": 2,
        "OUTPUT_DIR": "./output",
        "SEED": -1,
        "CUDNN_BENCHMARK": False,
        "DATASETS": {"TRAIN": (), "TEST": ()},
        "DATALOADER": {
            "NUM_WORKERS": 4,
            "ASPECT_RATIO_GROUPING": True,
            "FILTER_EMPTY_ANNOTATIONS": True,
            "REPEAT_THRESHOLD": 0.0,
        },
        "INPUT": {
            "MIN_SIZE_TRAIN": (800,),
            "MIN_SIZE_TRAIN_SAMPLING": "choice",
            "MAX_SIZE_TRAIN": 1333,
            "MIN_SIZE_TEST": 800,
            "MAX_SIZE_TEST": 1333,
            "RANDOM_FLIP": "horizontal",
            "FORMAT": "BGR",
            "MASK_FORMAT": "polygon",
        },
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "DEVICE": "cuda",
            "WEIGHTS": "",
            "MASK_ON": False,
            "KEYPOINT_ON": False,
            "PIXEL_MEAN": [103.530, 116.280, 123.675],
            "PIXEL_STD": [1.0, 1.0, 1.0],
            "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
            "RESNETS": {
                "DEPTH": 50,
                "OUT_FEATURES": ["res4"],
                "NORM": "FrozenBN",
                "WIDTH_PER_GROUP": 64,
                "STRIDE_IN_1X1": True,
                "RES2_OUT_CHANNELS": 256,
                "STEM_OUT_CHANNELS": 64,
            },
            "FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": ""},
            "ANCHOR_GENERATOR": {
                "SIZES": [[32, 64, 128, 256, 512]],
                "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
                "OFFSET": 0.0,
            },
            "RPN": {
                "IN_FEATURES": ["res4"],
                "IOU_THRESHOLDS": [0.3, 0.7],
                "BATCH_SIZE_PER_IMAGE": 256,
                "POSITIVE_FRACTION": 0.5,
                "SMOOTH_L1_BETA": 0.0,
                "PRE_NMS_TOPK_TRAIN": 12000,
                "PRE_NMS_TOPK_TEST": 6000,
                "POST_NMS_TOPK_TRAIN": 2000,
                "POST_NMS_TOPK_TEST": 1000,
                "NMS_THRESH": 0.7,
            },
            "ROI_HEADS": {
                "NAME": "Res5ROIHeads",
                "NUM_CLASSES": 80,
                "IN_FEATURES": ["res4"],
                "IOU_THRESHOLDS": [0.5],
                "BATCH_SIZE_PER_IMAGE": 512,
                "POSITIVE_FRACTION": 0.25,
                "SCORE_THRESH_TEST": 0.05,
                "NMS_THRESH_TEST": 0.5,
            },
            "ROI_BOX_HEAD": {
                "NAME": "",
                "NUM_FC": 0,
                "FC_DIM": 1024,
                "SMOOTH_L1_BETA": 0.0,
                "POOLER_RESOLUTION": 14,
                "POOLER_SAMPLING_RATIO": 0,
                "POOLER_TYPE": "ROIAlignV2",
            },
            "ROI_MASK_HEAD": {
                "NAME": "MaskRCNNConvUpsampleHead",
                "NUM_CONV": 0,
                "CONV_DIM": 256,
                "POOLER_RESOLUTION": 14,
                "POOLER_SAMPLING_RATIO": 0,
                "POOLER_TYPE": "ROIAlignV2",
            },
        },
        "SOLVER": {
            "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
            "MAX_ITER": 40000,
            "BASE_LR": 0.001,
            "MOMENTUM": 0.9,
            "NESTEROV": False,
            "WEIGHT_DECAY": 0.0001,
            "WEIGHT_DECAY_NORM": 0.0,
            "GAMMA": 0.1,
            "STEPS": (30000,),
            "WARMUP_FACTOR": 1.0 / 1000,
            "WARMUP_ITERS": 1000,
            "WARMUP_METHOD": "linear",
            "CHECKPOINT_PERIOD": 5000,
            "IMS_PER_BATCH": 16,
            "BIAS_LR_FACTOR": 1.0,
            "WEIGHT_DECAY_BIAS": None,
            "AMP": {"ENABLED": False},
        },
        "TEST": {"EVAL_PERIOD": 0, "DETECTIONS_PER_IMAGE": 100},
    }
    return CfgNode(defaults)
