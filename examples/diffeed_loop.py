"""DifFeed in a plain PyTorch loop: python examples/diffeed_loop.py FOLDER

Decoder features go back into the encoder for a second pass. Gradients pass through the frozen network to the small
feedback layers. FOLDER holds one folder a class.
"""

import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from difformer import AttentionHead, DiffusionClassifier, FeedbackExtractor, create_backbone
from difformer.data import collate, create_dataset

folder, epochs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
torch.manual_seed(0)

config = {"name": "folder", "root": folder, "splits": {"train": "."}, "size": 32, "augmentation": "flip"}
train = create_dataset(config, "train")

backbone = create_backbone("adm32_cifar10")
extractor = FeedbackExtractor(
    backbone,
    feedback_taps=["out00", "out02"],  # read in the first pass, added at their mirrors in the encoder
    taps=["out01"],  # read in the second pass
    timesteps=[50],
    gate=True,  # the feedback starts at zero, so the first output is that of a plain pass
)
head = AttentionHead(extractor.specs, num_classes=len(train.class_names), width=64, heads=4, pool=4)
classifier = DiffusionClassifier(extractor, head, class_names=train.class_names)
for name, part in classifier.trained_parts.items():
    print(f"{name}: {sum(p.numel() for p in part.parameters()):,} parameters learn")

optimizer = torch.optim.AdamW(classifier.trained_parts.parameters(), lr=1e-3)
for epoch in range(epochs):
    classifier.train()
    train.set_epoch(epoch)
    extractor.seed = epoch
    hits, total = 0, 0
    for images, labels, ids in DataLoader(train, batch_size=16, shuffle=True, collate_fn=collate):
        logits = classifier(images, ids)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        hits, total = hits + (logits.argmax(dim=1) == labels).sum().item(), total + len(labels)
    print(f"epoch {epoch + 1}: {hits / total:.1%} of the training images")
