"""Ways to change a checkpoint folder."""

import json

from safetensors import safe_open
from safetensors.torch import load_file, save_file

METADATA = "bitnet_torch.scales"


def retensor(folder, edit, keep_scales=False):
    """Write the tensors again after ``edit(tensors)``, without the exact scales by default."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        kept = file.metadata()
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, kept if keep_scales else {"format": "pt"})
    if not keep_scales:
        reconfigure(folder, lambda config: config.get("bitnet_torch", {}).pop("exact_scales", None))


def reconfigure(folder, edit):
    """Write config.json again after ``edit(config)``."""
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def shard(folder, parts=3):
    """Split the one weights file into several with an index; return the names of the parts."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    names = sorted(tensors)
    files = [f"model-{i + 1:05}-of-{parts:05}.safetensors" for i in range(parts)]
    weight_map = {name: files[i % parts] for i, name in enumerate(names)}
    for i, file in enumerate(files):
        part = {n: tensors[n] for n in names if weight_map[n] == file}
        save_file(part, folder / file, metadata if i == 0 else {"format": "pt"})
    path.unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files
