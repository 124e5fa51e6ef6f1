"""Releases that carry images: each belongs to a bundle of the release, whole, once a target."""

from __future__ import annotations

import msgspec
import pytest

from edgekit.cli import release_file
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.image import BUNDLE_LABEL
from edgekit.contracts.messages import ImageRef, VariantRef
from edgekit.contracts.oci import LayoutReader, Manifest
from edgekit.contracts.release import Release, validate
from edgekit.package.layout import transaction

BUNDLE, OTHER = "sha256:" + "b" * 64, "sha256:" + "c" * 64
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def _release(**variant: object) -> Release:
    found = VariantRef(digest=BUNDLE, repository="meter", size=5, **variant)
    return Release(name="v1", model="meter", version="1", variants={"rpi5": found})


def _image(root, bundle=BUNDLE, tag="a"):
    with transaction(root) as change:
        manifest = Manifest(
            config=change.put(f"config {tag}".encode(), CONFIG),
            layers=(change.put(b"layer", LAYER),),
            annotations={BUNDLE_LABEL: bundle},
        )
        return change.tag(manifest, tag).digest


def test_a_release_takes_up_the_images_of_its_bundles(tmp_path):
    image = _image(tmp_path / "image")
    release, folders = release_file.with_images(_release(), [tmp_path / "image"])
    found = release.variants["rpi5"].image
    assert found == ImageRef(digest=image, repository="meter", size=len(b"config a" + b"layer"))
    path = tmp_path / "v1.release.json"
    release_file.write(path, release, folders)
    again, layouts = release_file.read(path)
    assert again == release
    assert release_file.holding(layouts, image).root == tmp_path / "image"


def test_without_images_nothing_changes():
    assert release_file.with_images(_release(), []) == (_release(), [])


def test_images_that_do_not_belong(tmp_path):
    _image(tmp_path / "strange", OTHER)
    with pytest.raises(BadInputError, match="holds no bundle of release v1"):
        release_file.with_images(_release(), [tmp_path / "strange"])
    _image(tmp_path / "twice")
    _image(tmp_path / "twice", tag="b")
    with pytest.raises(BadInputError, match="rpi5 has two images"):
        release_file.with_images(_release(), [tmp_path / "twice"])
    image = _image(tmp_path / "damaged")
    layout = LayoutReader(tmp_path / "damaged")
    layout.blob_path(layout.manifest(image).layers[0].digest).write_bytes(b"altered")
    with pytest.raises(BadInputError, match="does not match its digest"):
        release_file.with_images(_release(), [tmp_path / "damaged"])


@pytest.mark.parametrize("changed", [{"digest": "x"}, {"size": 0}, {"repository": "A/b"}])
def test_a_release_with_a_malformed_image_is_refused(changed):
    image = msgspec.structs.replace(ImageRef(digest=OTHER, repository="meter", size=1), **changed)
    with pytest.raises(BadInputError):
        validate(_release(image=image))
