"""Section 3 of the paper for any dataset: Table 2, pictures, and whether augmentation will help.

smallobj analyze coco_2017_val
smallobj analyze --json annotations.json --images images/
smallobj analyze coco_2017_train --augment orig_aug_multi3x
smallobj analyze --check --json annotations.json
smallobj analyze --check-images coco_2017_val
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.analysis.analyze import PROTOCOLS, analyze
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.report import figure5_images, write_report
from smallobj_d2.analysis.table2 import layouts
from smallobj_d2.commands import CommandLine, path, require, writable_folder
from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.check import check_coco
from smallobj_d2.datasets.coco import dataset_info, register_from_config
from smallobj_d2.datasets.findings import exit_code, report
from smallobj_d2.errors import SmallObjError, command, printable
from smallobj_d2.visualization.document import Table


def parser() -> CommandLine:
    p = CommandLine(__doc__)
    words = "registered name (not with --json), then overrides of the config"
    p.add_argument("words", nargs="*", metavar="DATASET | KEY VALUE", help=words)
    p.option("--json", "COCO instance annotations to analyze", type=path, metavar="FILE")
    p.option("--images", "their images, for plots of anchors", type=path, metavar="FOLDER")
    words = "config of the `training` protocol (default: --augment's, else base)"
    p.add_argument("--config-file", "--config", metavar="CONFIG", help=words)
    p.option("--augment", "compare with the draws of this config", metavar="CONFIG")
    p.option("--epochs", "epochs of draws for --augment", 1)
    p.option("--draws", "at most this many draws for --augment", type=int)
    p.option("--protocol", default="both", choices=(*PROTOCOLS, "both"))
    words = "file name or id of an image to plot anchors on; may be repeated"
    p.add_argument("--show", action="append", default=[], metavar="IMAGE", help=words)
    p.flag("--layouts", "only print what other readings of Table 2 give")
    words = "only name every defect of the JSON; exit code 2 for errors, 1 for warnings, else 0"
    p.flag("--check", words)
    p.flag("--check-images", "--check, and open every image as well")
    p.option("--workers", "threads that open images (default: one per core)", type=int)
    p.option("--notes", "most notes of a kind to list with --check", 5)
    words = "output folder (default: output/analysis/DATASET)"
    p.option("--output", words, type=path, metavar="FOLDER")
    return p


@command
def main(argv: Sequence[str] | None = None) -> int:
    return run(parser().parse_intermixed_args(argv))


def run(args: argparse.Namespace) -> int:
    require(args, "epochs", "draws", "workers")
    if not args.json and not args.words:
        raise SmallObjError("Name a registered dataset, or give --json FILE.")
    opts = args.words if args.json else args.words[1:]
    augment = load_cfg(args.augment, opts) if args.augment else None
    cfg = augment
    if args.config_file or cfg is None:
        cfg = load_cfg(args.config_file or "base", opts)
    for config in (cfg, augment):
        if config is not None:
            register_from_config(config)
    if args.json:
        json_file, images = args.json, args.images
        name, stem = printable(json_file.name), json_file.stem
    else:
        info = dataset_info(args.words[0])
        json_file, images = info.json_file, args.images or info.image_root
        name = stem = info.name
    if args.check or args.check_images:
        root = (images or json_file.parent) if args.check_images else None
        findings = check_coco(json_file, root, workers=args.workers)
        print(report(findings, notes=args.notes))
        return exit_code(findings)
    data = CocoFile(json_file, images or json_file.parent)
    if args.layouts:
        print(Table(*layouts(data.objects, progress=True)).markdown())
        return 0
    if args.show and not images:
        raise SmallObjError("--show needs --images, the folder that the images are in.")
    figure5_images(data, args.show)  # refuses unknown ones before the work
    paths = [image["file_name"] for image in data.images]
    if args.images and paths and not any(map(os.path.isfile, paths)):
        raise SmallObjError(
            f"--images {images} holds no image of {json_file}: there is no {paths[0]}, for one. "
            "It is the folder that each file_name there is relative to."
        )
    folder = writable_folder(args.output or Path("output", "analysis", stem))
    analysis = analyze(
        data,
        name,
        cfg,
        augment=augment,
        config_name=Path(args.augment or args.config_file or "base").stem,
        protocols=PROTOCOLS if args.protocol == "both" else (args.protocol,),
        epochs=args.epochs,
        draws=args.draws,
        progress=True,
    )
    files = write_report(analysis, folder, data if images else None, args.show)
    print(files[1].read_text(encoding="utf-8"))
    print(f"Report: {files[0]}, and {len(files) - 1} files of tables and pictures beside it.")
    return 0
