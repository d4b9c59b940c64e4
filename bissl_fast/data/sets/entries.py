"""The data sets that can be read: what each is, where it comes from and where it lies.

To add one, write its reader and append its entry; the command line, its messages and its tables follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bissl_fast.data.sets.fetch import Archive, Torchvision
from bissl_fast.data.sets.readers import arrays, class_folders, few_shot, lists, matlab, omniglot
from bissl_fast.data.sets.readers.source import Listing, Source
from bissl_fast.data.sets.readers.voc import voc2007
from bissl_fast.data.sets.textures import texture_source, textures

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set.

    Args:
        name: What a user types.
        title: Its full name.
        classes: Number of classes when complete.
        sizes: Images of its training, validation and test split when complete, as this project splits it.
        images: What its images are, in words.
        labelled: Reader of the labelled splits, given the set's folder.
        unlabelled: Reader of the unlabelled images; the training split without its labels if `None`.
        folders: Folders below the data root in which the set may lie; the first is torchvision's layout.
        marker: A file pattern that is met in the set's folder if it is there, of what is unpacked last, if possible; or
            several between bars, of which one is met.
        page: Official page, which tells the licence.
        licence: Of its images, in words that follow "the images are", where the page tells it.
        downloads: What brings it, in this order; empty if nothing does.
        undownloadable: Why nothing does, if so.
        alias: Another usual name, which is suggested this one.
    """

    name: str
    title: str
    classes: int
    sizes: tuple[int, int, int]
    images: str
    labelled: Callable[[Path], Listing]
    unlabelled: Callable[[Path], Source] | None = None
    folders: tuple[str, ...] = ()
    marker: str = ""
    page: str = ""
    licence: str = ""
    downloads: tuple[Torchvision | Archive, ...] = ()
    undownloadable: str = "its official download is gone"
    alias: str = ""

    @property
    def embedded(self) -> bool:
        """Whether the set is made here and needs no files."""
        return not self.folders

    def find(self, root: Path) -> Path | None:
        """The set's folder below a data root, if it is there."""
        for name in self.folders:
            if any(any((root / name).glob(marker)) for marker in self.marker.split("|")):
                return root / name
        return None


IMAGENET_TERMS = "for non-commercial research and education, by ImageNet's terms; their authors hold the copyright"

CIFAR100 = Entry(
    name="cifar100",
    title="CIFAR-100, fine labels",
    classes=100,
    sizes=(40000, 10000, 10000),
    images="32 px",
    labelled=arrays.cifar100,
    folders=("cifar-100-python", "."),
    marker="meta",
    page="https://www.cs.toronto.edu/~kriz/cifar.html",
    downloads=(Torchvision("CIFAR100"),),
)
OMNIGLOT = Entry(
    name="omniglot",
    title="Omniglot, characters as classes",
    classes=omniglot.CHARACTERS,
    sizes=(21099, 4869, 6492),
    images="105 px, black on white",
    labelled=omniglot.omniglot,
    folders=("omniglot-py", "omniglot", "."),
    marker="*images_*evaluation*",
    page="https://github.com/brendenlake/omniglot",
    licence="under the MIT licence",
    downloads=tuple(Torchvision("Omniglot", {"background": part}) for part in (True, False)),
)

ENTRIES = (
    Entry(
        name="textures",
        title="procedural textures, embedded",
        classes=12,
        sizes=(480, 240, 720),
        images="and 6,000 unlabelled of 23 patterns; 64 px",
        labelled=lambda _: textures(),
        unlabelled=lambda _: texture_source("unlabelled"),
        licence="made by bissl-fast, under its licence, Apache-2.0",
    ),
    Entry(
        name="stl10",
        title="STL-10",
        classes=10,
        sizes=(4000, 1000, 8000),
        images="and 100,000 unlabelled; 96 px",
        labelled=arrays.stl10,
        unlabelled=arrays.stl10_unlabelled,
        folders=("stl10_binary", "."),
        marker="train_X.bin",
        page="https://cs.stanford.edu/~acoates/stl10/",
        downloads=(Torchvision("STL10"),),
    ),
    Entry(
        name="flowers",
        title="Oxford 102 Flowers",
        classes=102,
        sizes=(1020, 1020, 6149),
        images="photographs",
        labelled=matlab.flowers,
        folders=("flowers-102", "."),
        marker="setid.mat",
        page="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        downloads=(Torchvision("Flowers102"),),
        alias="flowers102",
    ),
    Entry(
        name="cars",
        title="Stanford Cars",
        classes=196,
        sizes=(6598, 1546, 8041),
        images="photographs",
        labelled=matlab.cars,
        folders=("stanford_cars", "."),
        marker="devkit/cars_meta.mat",
        page="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        alias="stanfordcars",
    ),
    Entry(
        name="aircraft",
        title="FGVC-Aircraft, variants",
        classes=100,
        sizes=(3334, 3333, 3333),
        images="photographs",
        labelled=lists.aircraft,
        folders=("fgvc-aircraft-2013b/data", "data", "."),
        marker="images_variant_train.txt",
        page="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        licence="for non-commercial research; their photographers hold the copyright",
        downloads=(
            Archive(  # torchvision has the class, and neither a checksum nor a way out of a half archive
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                "d4acdd33327262359767eeaa97a4f732",
                limit=5 * 10**9,
            ),
        ),
        alias="fgvcaircraft",
    ),
    Entry(
        name="dtd",
        title="Describable Textures Dataset, split 1",
        classes=47,
        sizes=(1880, 1880, 1880),
        images="photographs",
        labelled=lists.dtd,
        folders=("dtd/dtd", "dtd", "."),
        marker="labels/*1.txt",
        page="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        licence="for research purposes",
        downloads=(Torchvision("DTD"),),
    ),
    Entry(
        name="pets",
        title="Oxford-IIIT Pets",
        classes=37,
        sizes=(2946, 734, 3669),
        images="photographs",
        labelled=lists.pets,
        folders=("oxford-iiit-pet", "."),
        marker="annotations/trainval.txt",
        page="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        licence="under CC BY-SA 4.0; their authors hold the copyright",
        downloads=(Torchvision("OxfordIIITPet"),),
        alias="oxfordiiitpet",
    ),
    Entry(
        name="fashionmnist",
        title="Fashion-MNIST",
        classes=10,
        sizes=(48000, 12000, 10000),
        images="28 px, gray",
        labelled=arrays.fashion_mnist,
        folders=("FashionMNIST/raw", "fashion-mnist", "."),
        marker="train-images-idx3-ubyte*",
        page="https://github.com/zalandoresearch/fashion-mnist",
        licence="under the MIT licence",
        downloads=(Torchvision("FashionMNIST"),),
    ),
    Entry(
        name="cifar10",
        title="CIFAR-10",
        classes=10,
        sizes=(40000, 10000, 10000),
        images="32 px",
        labelled=arrays.cifar10,
        folders=("cifar-10-batches-py", "."),
        marker="data_batch_1",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        downloads=(Torchvision("CIFAR10"),),
    ),
    CIFAR100,
    replace(
        CIFAR100,
        name="cifar100-coarse",
        title="CIFAR-100, its 20 superclasses",
        classes=20,
        images="32 px; the splits of cifar100",
        labelled=arrays.cifar100_coarse,
    ),
    replace(
        CIFAR100,
        name="cifar100-cross",
        title="CIFAR-100, half of the classes of every superclass",
        classes=50,
        sizes=(20000, 5000, 5000),
        images="and 25,000 unlabelled of the other 50 classes; 32 px",
        labelled=arrays.cifar100_cross,
        unlabelled=arrays.cifar100_cross_pretext,
    ),
    Entry(
        name="caltech101",
        title="Caltech-101, 30 training images per class",
        classes=101,
        sizes=(2424, 606, 5647),
        images="photographs",
        labelled=class_folders.caltech101,
        folders=("caltech101", "."),
        marker="101_ObjectCategories",
        page="https://data.caltech.edu/records/mzrjq-6wc02",
        licence="under CC BY 4.0",
        downloads=(Torchvision("Caltech101"),),
    ),
    Entry(
        name="food101",
        title="Food-101",
        classes=101,
        sizes=(60600, 15150, 25250),
        images="photographs",
        labelled=lists.food101,
        folders=("food-101", "."),
        marker="meta/train.json",
        page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        downloads=(Torchvision("Food101"),),
    ),
    Entry(
        name="sun397",
        title="SUN397, partition 1",
        classes=397,
        sizes=(15880, 3970, 19850),
        images="photographs",
        labelled=lists.sun397,
        folders=("SUN397", "."),
        marker="Partitions/Training_01.txt",
        page="https://vision.princeton.edu/projects/2010/SUN/",
        downloads=(
            Torchvision("SUN397"),  # without the partitions
            Archive(
                "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",
                "29a205c0a0129d21f36cbecfefe81881",
                limit=10**8,
                into="SUN397/Partitions",
            ),
        ),
    ),
    Entry(
        name="cub200",
        title="Caltech-UCSD Birds-200-2011",
        classes=200,
        sizes=(4800, 1194, 5794),
        images="photographs",
        labelled=lists.cub200,
        folders=("CUB_200_2011", "."),
        marker="train_test_split.txt",
        page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        licence="for non-commercial research and education",
        downloads=(
            Archive(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "97eceeb196236b17998738112f37df78",
                limit=3 * 10**9,
            ),
        ),
        alias="birds",
    ),
    Entry(
        name="voc2007",
        title="PASCAL VOC 2007, multi-label",
        classes=20,
        sizes=(2501, 2510, 4952),
        images="photographs",
        labelled=voc2007,
        folders=("VOCdevkit/VOC2007", "VOC2007", "."),
        marker="ImageSets/Main/test.txt",
        page="http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        downloads=tuple(
            Torchvision("VOCDetection", {"year": "2007", "image_set": part}) for part in ("trainval", "test")
        ),
        alias="pascalvoc",
    ),
    Entry(
        name="tinyimagenet",
        title="Tiny-ImageNet",
        classes=200,
        sizes=(80000, 20000, 10000),
        images="64 px",
        labelled=class_folders.tiny_imagenet,
        folders=("tiny-imagenet-200", "tiny-imagenet", "."),
        marker="wnids.txt",
        page="https://www.image-net.org/download.php",
        licence=IMAGENET_TERMS,
        downloads=(
            Archive(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", limit=2 * 10**9
            ),
        ),
    ),
    OMNIGLOT,
    replace(
        OMNIGLOT,
        name="omniglot-fewshot",
        title="Omniglot, other characters to test than to train",
        sizes=(15424, 3856, 13180),
        images="964 characters train, 659 test; 105 px, black on white",
        labelled=omniglot.omniglot_few_shot,
        unlabelled=omniglot.omniglot_background,
    ),
    replace(
        OMNIGLOT,
        name="omniglot-turned",
        title="Omniglot, likewise, turned characters being more of them to train",
        classes=omniglot.CHARACTERS + 3 * omniglot.BACKGROUND_CHARACTERS,
        sizes=(61696, 15424, 13180),
        images="3,856 characters train, 659 test; 105 px, black on white",
        labelled=partial(omniglot.omniglot_few_shot, turned=True),
        unlabelled=partial(omniglot.omniglot_background, turned=True),
    ),
    Entry(
        name="miniimagenet",
        title="miniImageNet, other classes to test than to train",
        classes=few_shot.CLASSES,
        sizes=(38400, 9600, 12000),
        images="64 classes train, 16 validate, 20 test; photographs",
        labelled=few_shot.mini_imagenet,
        folders=("miniimagenet", "mini-imagenet", "mini_imagenet", "miniImageNet", "."),
        marker="test.csv|test/n[0-9]*",
        page="https://github.com/twitter-research/meta-learning-lstm",
        licence=IMAGENET_TERMS,
        undownloadable="its images are ImageNet's, which are not handed out freely",
    ),
    Entry(
        name="cifarfs",
        title="CIFAR-FS, other classes to test than to train",
        classes=few_shot.CLASSES,
        sizes=(38400, 9600, 12000),
        images="64 classes train, 16 validate, 20 test; 32 px",
        labelled=few_shot.cifar_fs,
        folders=("cifar-fs/cifar100", "cifar100", "cifar-fs", "."),
        marker="splits/bertinetto/test.txt",
        page="https://github.com/bertinetto/r2d2",
        undownloadable="it is offered from a page alone",
    ),
)
