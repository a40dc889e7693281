"""A bundle's contract while the bundle is being written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cirrus_client.bundle import PROBE_QUERIES, BundleSpec, FidelityStatus, GraphSpec, SpaceSpec
from cirrus_client.canary import ARRAYS, CANARY
from cirrus_client.extras import installed_version
from cirrus_client.files import sha256_of_file
from cirrus_export.checkpoints.state import fingerprint
from cirrus_export.recipes import Recipe
from cirrus_export.request import ExportRequest

MAX_BATCH = 64
NOT_MEASURED = FidelityStatus(passed=False, failures=("not measured yet",))
_VERIFIED_WITH = (PROBE_QUERIES, CANARY, ARRAYS)
_ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_RECORDED_PACKAGES = ("torch", "onnx", *_ONNX_RUNTIMES, "open_clip_torch", "transformers", "tokenizers", "pillow")


class ContractDraft:
    """What a contract says before the graphs are written. Making a draft writes the bundle's tokenizer."""

    def __init__(self, request: ExportRequest, recipe: Recipe, root: Path) -> None:
        """root: the bundle's folder."""
        self._request = request
        self._recipe = recipe
        self._root = root
        tokenizer = recipe.backbone.write_tokenizer(root, recipe.prompt)
        self._tokenizer = tokenizer.model_copy(update={"cut_lengths": recipe.text_lengths[:-1]})
        self._preprocess = recipe.preprocess(recipe.backbone.preprocess)
        components = {name: fingerprint(module) for name, module in recipe.target_modules().items()} | {
            "preprocess": self._preprocess.model_dump_json(),
            "tokenizer": sha256_of_file(root / self._tokenizer.file),
            "pooling": recipe.pooling(),
        }
        if recipe.backbone.activation is not None:
            components["activation"] = recipe.backbone.activation
        self.space = SpaceSpec.of(components, dim=recipe.dim, vectors=recipe.vectors, similarity=recipe.similarity)

    def contract(self, graphs: Mapping[str, GraphSpec], fidelity: FidelityStatus) -> BundleSpec:
        """Return the contract with these graphs, and the checksums of the files as they are now."""
        request, recipe = self._request, self._recipe
        return BundleSpec(
            name=request.out.name,
            recipe=request.recipe,
            backbone=request.backbone,
            pretrained=request.located_pretrained(),
            head=request.head_identity(),
            options=recipe.options.model_dump(mode="json") | request.backbone_options().model_dump(exclude_none=True),
            precision=request.precision,
            space=self.space,
            preprocess=self._preprocess,
            tokenizer=self._tokenizer,
            graphs=dict(graphs),
            ensembles=recipe.ensembles(),
            max_batch=MAX_BATCH,
            caption_join=recipe.caption_join,
            circo_without_reference=recipe.circo_without_reference,
            instructions=recipe.instructions(),
            fidelity=fidelity,
            versions=recorded_versions(),
            files=self._checksums(),
        )

    def _checksums(self) -> dict[str, str]:
        graphs = sorted((self._root / "graphs").iterdir())
        paths = [*graphs, self._root / self._tokenizer.file, *(self._root / name for name in _VERIFIED_WITH)]
        return {str(path.relative_to(self._root)): sha256_of_file(path) for path in paths if path.exists()}


def recorded_versions() -> dict[str, str]:
    """Return the versions of the installed packages that make a bundle, by name. ONNX Runtime has two packages."""
    return {name: found for name in _RECORDED_PACKAGES if (found := installed_version(name)) is not None}
