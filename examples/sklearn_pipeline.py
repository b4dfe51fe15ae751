"""Diffusion features in a scikit-learn pipeline and grid search: python examples/sklearn_pipeline.py FOLDER

FOLDER holds one folder a class. Needs scikit-learn.
"""

import sys
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from difformer.data import IMAGE_SUFFIXES
from difformer.sklearn import DiffusionFeatures

paths = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
labels = [path.parent.name for path in paths]
train, test, y_train, y_test = train_test_split(paths, labels, test_size=0.25, stratify=labels, random_state=0)

model = make_pipeline(DiffusionFeatures("adm32_cifar10"), StandardScaler(), LogisticRegression(max_iter=1000))
search = GridSearchCV(
    model,
    {"diffusionfeatures__timesteps": [(50,), (150,)], "diffusionfeatures__taps": [("mid",), ("out01",)]},
    cv=2,
)
search.fit(train, y_train)
print(search.best_params_)
print(f"{search.best_score_:.1%} in cross-validation, {search.score(test, y_test):.1%} of the test images")
