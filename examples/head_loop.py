"""DifFormer in a plain PyTorch loop: python examples/head_loop.py FOLDER

FOLDER holds one folder a class. A quarter of each class is kept for the test.
"""

import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from difformer import DifFormerHead, DiffusionClassifier, FeatureExtractor, create_backbone, save_classifier
from difformer.data import collate, create_dataset

folder, epochs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
torch.manual_seed(0)

config = {"name": "folder", "root": folder, "splits": {"train": "."}, "test_fraction": 0.25, "size": 32}
train = create_dataset({**config, "augmentation": "shift"}, "train")
test = create_dataset(config, "test", classes=train.class_names)

backbone = create_backbone("adm32_cifar10")
extractor = FeatureExtractor(backbone, taps=["out00", "out01", "out03"], timesteps=[50])
head = DifFormerHead(extractor.specs, num_classes=len(train.class_names), variant="joint", width=64, heads=4, pool=4)
classifier = DiffusionClassifier(extractor, head, class_names=train.class_names)

# The backbone is frozen: only the head is here.
optimizer = torch.optim.AdamW(classifier.trained_parts.parameters(), lr=1e-3, weight_decay=0.05)
for epoch in range(epochs):
    classifier.train()
    train.set_epoch(epoch)  # augmentation is a function of seed, epoch and image
    extractor.seed = epoch  # and so is the noise
    losses = []
    for images, labels, ids in DataLoader(train, batch_size=32, shuffle=True, collate_fn=collate):
        loss = F.cross_entropy(classifier(images, ids), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")

classifier.eval()
extractor.seed = 0
hits = 0
with torch.no_grad():
    for images, labels, ids in DataLoader(test, batch_size=32, collate_fn=collate):
        hits += (classifier(images, ids).argmax(dim=1) == labels).sum().item()
print(f"test: {hits} of {len(test)} images are right")
save_classifier("classifier.safetensors", classifier, epochs=epochs)
