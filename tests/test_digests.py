"""All that is pinned in tests/data/digests.json is as it was; proofs/digests.py tells what is."""

import numpy as np
import pytest
import torch

from proofs import ROOT, digests


@pytest.fixture(scope="module")
def sources():
    with digests.sources() as made:
        yield made


@pytest.mark.parametrize("section", digests.SECTIONS, ids=lambda s: s.name.replace(" ", "_"))
def test_nothing_that_is_pinned_has_changed(section, sources):
    known = digests.recorded()
    if known["versions"] != digests.versions():
        pytest.skip(f"digests are of {known['versions']}, here are {digests.versions()}")
    if section.depends_on_cpu and known["cpu"] != digests.cpu():
        pytest.skip(f"pixels are of a CPU with {known['cpu']}, this one has {digests.cpu()}")
    if why := section.missing(sources):
        pytest.skip(why)
    before = digests.of_section(known["digests"], section)
    changed = digests.differences(before, section.digests(sources))
    assert not changed, "\n".join(
        [*changed, "If this is on purpose: python -m proofs.digests --write, and say why."]
    )


def test_every_config_is_pinned_and_those_with_copy_paste_paste():
    known = digests.recorded()["digests"]
    for path in digests.CONFIGS:
        config = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        pastes = digests.load_cfg(path).SMALLOBJ.COPY_PASTE
        for section in digests.SECTIONS:
            if not section.engine:
                continue
            parts = known[f"{section.name}: {config}"]
            assert parts["shown"].endswith(" 0 pastes") != pastes, (section.name, config)


def sample():
    return {
        "image": torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5),
        "target": {
            "boxes": torch.tensor([[0.1, 0.2, 3.3, 2.7]]),
            "windows": torch.tensor([[0, 0, 2, 2]]),
            "masks": torch.tensor([1, 1, 0, 1], dtype=torch.uint8),
            "labels": torch.tensor([3]),
            "pasted": torch.tensor([True]),
        },
    }


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("pixels", lambda s: s["image"][2, 3, 4].add_(1)),
        ("boxes", lambda s: s["target"]["boxes"].numpy().__setitem__((0, 2), just_above(3.3))),
        ("masks", lambda s: s["target"]["masks"][2].add_(1)),
        ("classes", lambda s: s["target"]["pasted"].logical_not_()),
    ],
)
def test_the_least_change_shows_in_its_part_alone(part, change):
    changed = sample()
    change(changed)
    before, after = (digests.parts_of([s]) for s in (sample(), changed))
    assert [p for p in before if before[p] != after[p]] == [part]
    assert digests.differences({"x": before}, {"x": after})[0].startswith(f"x: {part} differ;")


def just_above(value: float) -> np.float32:
    return np.nextafter(np.float32(value), np.float32(np.inf))


def test_values_that_look_alike_have_digests_of_their_own():
    alike = [1, 1.0, True, "1", b"1", [1], np.array(1), np.array(1.0), [[1], []], [[], [1]], None]
    assert len({digests.digest(value) for value in alike}) == len(alike)
