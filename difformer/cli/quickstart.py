"""The verb that shows everything on one data set: quickstart."""

from pathlib import Path

from difformer.verbs.quickstart.dense import quickstart_dense
from difformer.verbs.quickstart.plan import QuickstartConfig, QuickstartTask
from difformer.verbs.quickstart.quickstart import quickstart as carry_out


def quickstart(
    *,
    task: QuickstartTask = "classification",
    data: Path | None = None,
    recipe: Path | None = None,
    levels: bool = False,
    output: Path | None = None,
    seeds: int = 3,
    diffeed_seeds: int = 1,
    k_shot: int | None = None,
    overwrite: bool = False,
) -> None:
    """Trains linear, attention, DifFormer and DifFeed heads on real images, compares them, and writes a page about it.

    By default: the solar cells of ELPV, with the weights adm_elpv. The same command resumes after an interruption.

    Args:
        task: classification; segmentation, of a folder of images and masks; or detection, of images with COCO's
            annotations. The last two need data.
        data: a folder of your own images, with one folder a class, or such folders in train and in test (or val, where
            there is no test). It uses the weights adm32_cifar10; without a test folder, a quarter of each class is set
            aside. With a recipe, the root of its data set.
        recipe: a YAML file with heads, backbone and data set of your own, in the form of
            difformer/verbs/quickstart/elpv.yaml, or for another task of segmentation.yaml beside it.
        levels: classify ELPV's four levels of certainty in place of functional and defective.
        output: the folder of everything; runs/quickstart-… by default.
        seeds: of each trained method.
        diffeed_seeds: of DifFeed, which takes longest and starts from attention of the same seed, so at most as many as
            seeds; 0 leaves it out.
        k_shot: train on that many images of each class only, drawn anew for each seed; beside them, k-NN chooses its k
            on a tenth of the training images.
        overwrite: start anew although there is a quickstart in the folder.
    """
    follow = carry_out if task == "classification" else quickstart_dense
    follow(
        QuickstartConfig(
            task=task,
            data=None if data is None else str(data),
            recipe=None if recipe is None else str(recipe),
            levels=levels,
            output=None if output is None else str(output),
            seeds=seeds,
            diffeed_seeds=diffeed_seeds,
            k_shot=k_shot,
        ),
        overwrite=overwrite,
    )
