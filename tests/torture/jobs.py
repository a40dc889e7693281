"""The jobs that are tortured, and what must be true of their output after every fault."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import MANIFEST, embed_gallery, read_gallery
from cirrus_client.gallery.cached_encoder import CachedEncoder
from cirrus_client.gallery.feature_cache import FeatureCache
from cirrus_client.index import build_index, open_index
from cirrus_client.names import Writer
from cirrus_client.outputs import replaced_directory

_ENGINE = "onnxruntime"
_SHARD = 8


class Job(ABC):
    """A job with one output. A job object holds paths alone, so that each run opens everything in its own process."""

    def __init__(self, inputs: Path, out: Path) -> None:
        """inputs: a folder with `photos`, `bundle`, and whatever `prepare` needs. out: the output's folder."""
        self.inputs, self.out = inputs, out

    @property
    def photos(self) -> Path:
        return self.inputs / "photos"

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.inputs / "bundle")

    def prepare(self) -> None:
        """Put into place what is there before the job. Called before every run that is disturbed."""
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir(parents=True)

    @abstractmethod
    def run(self) -> None:
        """Do the whole job, or the rest of it."""

    @abstractmethod
    def check_usable(self) -> None:
        """Assert that the output is usable after a fault: empty, old or new, with every item once."""

    def content(self) -> dict[str, bytes]:
        """Return every file that the job left, hidden ones included, by its path."""
        root = self.out.parent
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Embed(Job):
    """Embeds a new gallery."""

    def run(self) -> None:
        embed_gallery(self.photos, self.out, LocalEncoder(self.bundle, engine=_ENGINE), shard_size=_SHARD, batch_size=4)

    def check_usable(self) -> None:
        if (self.out / MANIFEST).exists():
            gallery = read_gallery(self.out, allow_empty=True)
            assert len(set(gallery.paths)) == len(gallery.paths) == len(gallery)
            assert not len(gallery) or len(gallery.embeddings) == len(gallery)


class Update(Embed):
    """Brings a gallery up to date: some images have changed, some are new, one is gone."""

    def prepare(self) -> None:
        super().prepare()
        for path in sorted(self.photos.iterdir())[::5]:
            os.utime(path, ns=(1, 1))
        held_back = sorted(self.photos.iterdir())[3]
        held_back.rename(self.inputs / held_back.name)
        super().run()
        (self.inputs / held_back.name).rename(held_back)
        for path in sorted(self.photos.iterdir())[::5]:
            os.utime(path, ns=(2, 2))

    def check_usable(self) -> None:
        super().check_usable()
        assert len(read_gallery(self.out)) >= len(list(self.photos.iterdir())) - 1


class EmbedWithCache(Embed):
    """Embeds a new gallery with a new feature cache."""

    def run(self) -> None:
        bundle = self.bundle
        with FeatureCache(self.out.parent / "cache", bundle) as features:
            encoder = CachedEncoder(bundle, features, engine=_ENGINE)
            embed_gallery(self.photos, self.out, encoder, recollection=encoder, shard_size=_SHARD, batch_size=4)

    def content(self) -> dict[str, bytes]:
        """See `Job.content`. Which features are kept depends on the moment of a fault, the gallery does not."""
        FeatureCache(self.out.parent / "cache", self.bundle).close()
        return {name: content for name, content in super().content().items() if not name.startswith("cache/f")}


class Index(Job):
    """Replaces the index of one gallery by that of another."""

    def prepare(self) -> None:
        super().prepare()
        build_index(read_gallery(self.inputs / "old"), self.out)

    def run(self) -> None:
        build_index(read_gallery(self.inputs / "new"), self.out)

    def check_usable(self) -> None:
        opened = open_index(self.out)
        gallery = read_gallery(self.inputs / Path(opened.items.images).name.removesuffix("-photos"))
        found = opened.index.search(np.ascontiguousarray(gallery.embeddings), 1)
        np.testing.assert_array_equal(found.rows[:, 0], np.arange(len(gallery)))
        assert [item.id for item in opened.items.rows(range(len(gallery)))] == list(gallery.paths)


class Replace(Job):
    """Replaces a bundle by a copy of another, as an export does when its graphs are written."""

    def _put(self, name: str) -> None:
        with replaced_directory(self.out, Writer.EXPORT) as root:
            shutil.copytree(self.inputs / name, root, dirs_exist_ok=True)

    def prepare(self) -> None:
        super().prepare()
        self._put("other-bundle")

    def run(self) -> None:
        self._put("bundle")

    def check_usable(self) -> None:
        LocalEncoder(Bundle.open(self.out), engine=_ENGINE).encode_targets([sorted(self.photos.iterdir())[0]])


JOBS: dict[str, type[Job]] = {
    "embed": Embed,
    "update": Update,
    "embed with a cache": EmbedWithCache,
    "index": Index,
    "replace a bundle": Replace,
}
