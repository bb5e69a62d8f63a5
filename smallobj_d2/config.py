"""The ``SMALLOBJ`` keys, and a config that holds them with or without Detectron2.

Every key is documented where it is added, below. ``docs/fidelity.md`` says which statement of the
paper each one stands for, and which test holds it.
"""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from smallobj_d2.errors import SmallObjError
from smallobj_d2.registry import import_modules
from smallobj_d2.sizes import SMALL_AREA


def add_smallobj_config(cfg: CfgNode) -> None:
    """Add the ``SMALLOBJ`` node with its defaults to a Detectron2 config, in place.

    The defaults are the paper's, with oversampling and copy-paste switched off.
    """
    node = type(cfg)  # Detectron2 has a CfgNode of its own
    s = cfg.SMALLOBJ = node()

    # Datasets of your own in COCO format: a list of [name, json file, image folder]. The names can
    # then stand in DATASETS.TRAIN and DATASETS.TEST.
    s.DATASETS = []
    # Modules of your own to import first, by name or as paths of .py files: they register the
    # strategies, repeat-factor functions, mappers and engines that other keys then name.
    s.IMPORTS = []
    # What counts as small: mask area below this many pixels of the original image (Table 1).
    s.SMALL_AREA = SMALL_AREA
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
    # False: every augmented draw gets pastes of its own. True: an image has one augmented copy, the
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
    # not allowed. 0 keeps masks apart whichever way their outlines are turned into pixels.
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


def load_cfg(config_file: str | Path, opts: list[str] | None = None) -> CfgNode:
    """Read a YAML file over the defaults, then ``KEY VALUE`` pairs over that, and freeze.

    Raises:
        SmallObjError: no such file, a key that does not exist, a value of the wrong type.
    """
    cfg = get_cfg()
    path = Path(config_file)
    if not path.is_file():
        raise SmallObjError(f"There is no config file {path}.")
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except FileNotFoundError as e:
        raise SmallObjError(f"{path}: its _BASE_ is not there: {e.filename}.") from e
    except (KeyError, ValueError, AssertionError, OSError, AttributeError, TypeError) as e:
        raise SmallObjError(f"{path}: {_explain(e)}") from e
    except Exception as e:  # PyYAML's errors share no base with anything above
        if type(e).__module__.startswith("yaml"):
            raise SmallObjError(f"{path} is not valid YAML: {' '.join(str(e).split())}") from e
        raise
    merge_opts(cfg, opts or [])
    check_cfg(cfg)
    import_modules(cfg.SMALLOBJ.IMPORTS)
    cfg.freeze()
    return cfg


def merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    """Merge ``KEY VALUE`` pairs from a command line, in place."""
    if len(opts) % 2:
        raise SmallObjError(
            f"Overrides are pairs of KEY VALUE, but there are {len(opts)} words: {' '.join(opts)}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError, AttributeError) as e:
            raise SmallObjError(f"Override {key} {value}: {_explain(e)}") from e


_MISMATCH = re.compile(
    r"Type mismatch \(<class '(.+?)'> vs\. <class '(.+?)'>\) "
    r"with values \((.*) vs\. (.*)\) for config key: (\S+)",
    re.DOTALL,
)


def _explain(error: BaseException) -> str:
    text = str(error.args[0] if error.args else error)
    if mismatch := _MISMATCH.search(text):
        wanted, given, default, value, key = mismatch.groups()
        if wanted.endswith("CfgNode"):
            return f"{key} is a group of keys and cannot be {value}."
        return f"{key} must be of type {wanted}, like {default}; {value} is of type {given}."
    if "Non-existent" in text or (isinstance(error, AssertionError) and "Attribute" not in text):
        key = text.rsplit(":", 1)[-1].strip()
        more = "" if has_detectron2() else " (without Detectron2, only keys torchvision can honour)"
        return f"there is no key {key}{more}. The keys of SMALLOBJ are listed in config.py."
    if (isinstance(error, AttributeError | TypeError) and "object" in text) or "NoneType" in text:
        return "a config file is a mapping of keys to values, and this is not."
    return " ".join(text.split())


_CHOICES = {
    "AUGMENTATION_READING": ("probability", "paired"),
    "COVERED_LABELS": ("visible", "untouched"),
    "UNREADABLE_IMAGES": ("stop", "skip"),
    "SOURCES": ("image", "bank"),
    "AUGMENTED_IMAGES": ("small", "all"),
}


def check_cfg(cfg: CfgNode) -> None:
    """Refuse values of ``SMALLOBJ`` that mean nothing.

    Raises:
        SmallObjError: naming the key, its value, and what it may be.
    """
    s = cfg.SMALLOBJ
    for key, choices in _CHOICES.items():
        if s[key] not in choices:
            raise SmallObjError(f"SMALLOBJ.{key} is {s[key]!r}; it must be one of {choices}.")
    if not 0 <= s.AUGMENTATION_PROBABILITY <= 1:
        raise SmallObjError(
            f"SMALLOBJ.AUGMENTATION_PROBABILITY is {s.AUGMENTATION_PROBABILITY}; "
            "it is a share, from 0 to 1."
        )
    if not 1 <= s.OVERSAMPLING_FACTOR <= 1000:
        raise SmallObjError(
            f"SMALLOBJ.OVERSAMPLING_FACTOR is {s.OVERSAMPLING_FACTOR}; it must be 1 (off) or more, "
            "and at most 1000."
        )
    if not s.BANK_IMAGES >= 1:
        raise SmallObjError(f"SMALLOBJ.BANK_IMAGES is {s.BANK_IMAGES}; it must be 1 or more.")
    for key in ("SCALE", "ROTATION"):
        if len(s[key]) != 2 or not all(isinstance(v, int | float) for v in s[key]):
            raise SmallObjError(f"SMALLOBJ.{key} is {s[key]}; it must be two numbers.")
    for entry in s.IMPORTS:
        if not isinstance(entry, str):
            raise SmallObjError(
                f"SMALLOBJ.IMPORTS holds {entry!r}; each entry is the name of a module or the path "
                "of a .py file."
            )
    for entry in s.DATASETS:
        whole = isinstance(entry, list | tuple) and len(entry) == 3
        if not whole or not all(isinstance(e, str) for e in entry):
            raise SmallObjError(
                f"SMALLOBJ.DATASETS holds {entry!r}; each entry is [name, json file, image folder]."
            )


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
