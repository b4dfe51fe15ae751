"""A data set of your own: python examples/own_data_set.py FOLDER

The classes stand in the names of the files, `cat_1.jpg`. In a recipe it would be `data.name: my_package.data:by_name`,
and k-shot subsets, holdouts, caches and evaluation work with it as with any other.
"""

import sys
from pathlib import Path

from difformer.data import READERS, Source, create_dataset, file_source


@READERS.register("by_name")
def by_name(config, split) -> Source:
    """FOLDER/SPLIT/CLASS_NUMBER.jpg"""
    root = Path(config.root) / split
    names = sorted(path.name for path in root.glob("*_*.*"))
    classes = sorted({name.partition("_")[0] for name in names})
    labels = [classes.index(name.partition("_")[0]) for name in names]
    return file_source(f"by name, {split} in {root}", root, names, labels, classes)


images = create_dataset({"name": "by_name", "root": sys.argv[1], "size": 32, "k_shot": 2}, "train", augment=False)
print(images)
for place in range(len(images)):
    image, label, number = images[place]
    print(number, images.names[place], images.class_names[label], tuple(image.shape))
