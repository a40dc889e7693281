"""Run open_clip with a PyTorch DataLoader, as a notebook would."""

import driver

kept = driver.let_torchvision_import()

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

PHOTOS, WEIGHTS, OUT = driver.paths()


model, _, transform = open_clip.create_model_and_transforms(
    "ViT-B-32-quickgelu", pretrained=str(WEIGHTS / "open_clip.pt")
)
model.eval()


class Photos(Dataset):
    files = sorted(PHOTOS.glob("*.jpg"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, position):
        return transform(Image.open(self.files[position]))


def embed():
    loader = DataLoader(Photos(), batch_size=32, num_workers=2)
    with torch.no_grad():
        np.save(OUT, torch.cat([model.encode_image(batch) for batch in loader]).numpy())


driver.serve("open_clip_torch", embed)
